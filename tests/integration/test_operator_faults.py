"""Deletion, removal of the operator, disruption and many jobs on a real control plane (faults 5, 6, 9 and 10)."""

import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.operator_harness import NAMESPACE, RELEASE, Installation, Kubelet, Operator, manifest, now, until

pytestmark = pytest.mark.slow

MANY = 60
MOST_MEGABYTES = 150.0
"""The benchmark holds the figure for a thousand jobs; this notices when a job costs a megabyte."""

STOP_SECONDS = 10.0
ALL_CHILDREN = "jobs,configmaps,services,serviceaccounts,roles,rolebindings,networkpolicies,pods"


def staging(installation: Installation, job: str, **spec: Any) -> tuple[Kubelet, list[dict[str, Any]]]:
    """Create a job and bring its pods to staging."""
    installation.create(manifest(job, **spec))
    kubelet, pods = Kubelet(installation, job), installation.wait_for_pods(job, spec.get("nodes", 2))
    for pod in pods:
        kubelet.stage(pod)
    until("staging", lambda: installation.phase(job) == "Staging")
    return kubelet, pods


def evict(installation: Installation, pod: dict[str, Any]) -> None:
    """Evict a pod as `kubectl drain` does."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(eviction, file)
        file.flush()
        installation.cluster.kubectl("create", "--raw", f"/api/v1/namespaces/default/pods/{name}/eviction", "-f", file.name)


def run_in_namespace(installation: Installation, namespace: str, pods: int) -> None:
    """Run a job in a namespace of its own."""
    installation.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    # The namespace controller looks again after half of the longest grace period that it has seen.
    job = manifest("resident", nodes=pods, template={"spec": {"terminationGracePeriodSeconds": 10}})
    installation.create({**job, "metadata": {**job["metadata"], "namespace": namespace}})
    listing = "get", "pods", "--namespace", namespace, "-o", "name"
    until("its pods", lambda: len(installation.cluster.kubectl(*listing).split()) == pods)
    path = "jsonpath={.items[*].status.phase}"
    until("its status", lambda: installation.cluster.kubectl("get", "rfl", "--namespace", namespace, "-o", path) == "Pending")


def delete_namespace(installation: Installation, namespace: str) -> None:
    """Delete a namespace, and wait until it is gone."""
    installation.cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    listing = "get", "namespace", namespace, "-o", "json", "--ignore-not-found"
    until(f"the namespace {namespace} is gone", lambda: not installation.cluster.kubectl(*listing))


def resident_megabytes(operator: Operator) -> float:
    """Memory that the operator's process has in use."""
    status = Path(f"/proc/{operator.process.pid}/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def test_many_jobs_get_all_their_objects_also_when_the_operator_is_replaced_halfway(installation: Installation) -> None:
    jobs = [manifest(f"many-{number}", nodes=1) for number in range(MANY)]

    def children() -> Counter[str]:
        answer = installation.cluster.kubectl("get", ALL_CHILDREN, "-l", "rewardfl.io/job-name", "-o", "name")
        return Counter(line.partition("/")[0].partition(".")[0] for line in answer.split())

    with installation.operator() as first:
        installation.cluster.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": jobs}))
        until("some are made", lambda: children()["job"] > 2)
        began = time.monotonic()
        assert first.stop() == 0, "in the middle of its work"
        assert time.monotonic() - began < STOP_SECONDS
    with installation.operator() as second:
        wanted = {"job": MANY, "configmap": 2 * MANY, "service": MANY, "serviceaccount": MANY, "pod": MANY}
        wanted |= {"role": MANY, "rolebinding": MANY, "networkpolicy": MANY}
        until("all children of all jobs, once", lambda: children() == wanted)
        phases = ["get", "rewardfljobs", "-o", "jsonpath={.items[*].status.phase}"]
        until("all statuses", lambda: installation.cluster.kubectl(*phases).split().count("Pending") == MANY)
        assert resident_megabytes(second) < MOST_MEGABYTES


def test_a_drained_pod_is_no_failure_and_the_gang_goes_on(installation: Installation, operator: Operator) -> None:
    kubelet, pods = staging(installation, "drained", runPolicy={"backoffLimit": 0})
    for pod in pods:
        kubelet.train(pod)
    checkpoint = {"step": 5, "uri": "s3://results/drained/checkpoints/step-5/", "time": now()}
    kubelet.report(phase="Training", step=7, total_steps=40, checkpoint=checkpoint)
    until("training", lambda: installation.status("drained").get("progress") == "7/40")
    first = {pod["metadata"]["name"] for pod in pods}

    evict(installation, pods[1])

    until("its peer is evicted too", lambda: not installation.pods("drained"))
    for pod in pods:
        kubelet.end(pod, 143)
    (restart,) = until("it is on record", lambda: installation.status("drained").get("restartHistory"))
    assert (restart["reason"], restart["counted"]) == ("Disrupted", False)

    def renewed() -> bool:
        kubelet.remove_deleted()
        running = installation.running_pods("drained")
        return len(running) == 2 and not first & {pod["metadata"]["name"] for pod in running}

    until("both pods are new ones", renewed)
    status = installation.status("drained")
    assert (status.get("restarts", 0), status["checkpoint"]["step"]) == (0, 5)
    assert installation.condition("drained", "Failed").get("status") != "True", "no retry was allowed, and none was needed"
    assert not installation.get("job", "drained")["status"].get("failedIndexes")
    installation.cluster.kubectl("delete", "rewardfljob", "drained", "--wait=false")


def test_a_job_that_is_deleted_while_it_stages_leaves_nothing_behind(installation: Installation, operator: Operator) -> None:
    kubelet, _ = staging(installation, "unwanted")
    kubelet.report(phase="Staging", staging={"bytes_done": 25, "bytes_total": 100})

    installation.cluster.kubectl("delete", "rewardfljob", "unwanted", "--wait=false")

    def nothing_left() -> bool:
        kubelet.remove_deleted()
        return not installation.children("unwanted")

    until("all children are gone", nothing_left)
    assert installation.find("rewardfljob", "unwanted") is None


def test_a_namespace_is_deleted_with_the_jobs_that_run_in_it(installation: Installation, operator: Operator) -> None:
    run_in_namespace(installation, "doomed", pods=2)

    delete_namespace(installation, "doomed")


def test_without_the_operator_nothing_of_a_job_or_of_its_namespace_hangs(installation: Installation, operator: Operator) -> None:
    run_in_namespace(installation, "abandoned", pods=2)
    run_in_namespace(installation, "abandoned-alone", pods=1)
    assert "finalizers" not in installation.get("rewardfljob", "resident", "abandoned")["metadata"]
    operator.kill()
    installation.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")

    delete_namespace(installation, "abandoned-alone")
    # Pods of a gang wait for their successors, as the Job controller wants it: its jobs go first.
    installation.cluster.kubectl("delete", "rewardfljobs", "--all", "--namespace", "abandoned", "--wait=false")
    delete_namespace(installation, "abandoned")
