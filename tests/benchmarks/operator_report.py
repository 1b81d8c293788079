"""The page of `make bench-operator`, as Markdown."""

from collections.abc import Mapping
from typing import Any

PAGE = """# The operator with {jobs} jobs, measured

Made by `make bench-operator` on {date} ({cores} cores for everything; {versions}). etcd, API server, Job controller and
scheduler are real; kubelets and trainers are played by the load. Each job has one pod; they lie in {namespaces} namespaces. The
operator runs with the chart's settings and rights, and all share the machine.

| what | measured | wanted |
|---|---|---|
| {jobs} jobs created by one kubectl (itself {kubectl_seconds:.1f} s): all {objects} objects made | \
{children_seconds:.1f} s | 60 s |
| the same, all pods made by the Job controller | {pods_seconds:.1f} s | |
| the same, all statuses and events written | {told_seconds:.1f} s | |
| writes of the operator a job, events and statuses included | {requests_a_job:.1f} | |
| CPU time of the operator meanwhile | {burst_cpu_seconds:.1f} s | |
| writes in {idle_seconds:.0f} s when nothing happens, a resync included | {idle_writes} | 0 |
| cores used meanwhile | {idle_cpu_cores:.3f} | |
| restart: every job looked at | {restart_seconds:.1f} s | 20 s |
| writes after a restart | {restart_writes} | 0 |
| apply to child Job at {pace:.0f} jobs a second, beside the {jobs}: p50, p99, longest | {apply_to_child_p50_seconds:.2f} s, \
{apply_to_child_p99_seconds:.2f} s, {apply_to_child_max_seconds:.2f} s | p99 2 s |
| {running_jobs} running jobs report every {report_seconds:.0f} s: oldest report that a status told of in a minute | \
{status_age_max_seconds:.1f} s | 10 s |
| cores used by the operator meanwhile, at {status_writes_a_second:.0f} status writes a second | {operator_cpu_cores:.2f} | |
| most resident memory | {rss_mb:.0f} MB | 300 MB |

Children and latencies are times of arrival at a watch, by one clock. Writes are what the operator has counted itself or what
versions of objects have changed, whichever is more; renewing the Lease of the leader is not counted. The controller manager's
client has 200 requests a second in place of the default 20, or all pods would wait for it, and Go's collector runs seldom
(GOGC=400). For each Role that is made the API server looks at all RoleBindings of its namespace (it lets nobody give away rights
that they lack), so a thousand jobs in one namespace take it longer than in several.

Beside it, measured earlier by hand on a machine of the same kind and not in this run: PyTorchJob's controller (training-operator
v1.8.1, defaults, one master and one worker) took about 100 s for 500 jobs with 1,000 pods, 5 jobs a second, with 92 MB.
"""


def page(numbers: Mapping[str, Any], constants: Mapping[str, float]) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {text}" for name, text in numbers["versions"].items())
    values = {**numbers, **constants, "versions": versions, "cores": numbers["machine_cores"]}
    return PAGE.format(**values)
