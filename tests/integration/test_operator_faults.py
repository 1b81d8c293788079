"""Deletion, removal of the operator, disruption and many jobs on a real control plane (faults 5, 6, 9 and 10)."""

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.integration.operator_harness import NAMESPACE, RELEASE, Installation, Kubelet, Operator, manifest, now, until

pytestmark = pytest.mark.slow

MANY = 60
MOST_MEGABYTES = 150.0
"""The benchmark holds the figure for a thousand jobs; this notices when a job costs a megabyte."""

STOP_SECONDS = 10.0
UNLIMITED = 2**31 - 1
"""What Kubernetes takes for `backoffLimit` where each index has a limit of its own."""

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
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(eviction, file)
        file.flush()
        path = f"/api/v1/namespaces/{namespace}/pods/{name}/eviction"
        installation.cluster.kubectl("create", "--raw", path, "-f", file.name)


@dataclass
class Resident:
    """A job in a namespace of its own, and the node that it runs on."""

    installation: Installation
    namespace: str

    @classmethod
    def settle(cls, installation: Installation, *namespaces: str, pods: int = 2) -> list["Resident"]:
        """Create the namespaces with a job in each, and wait until the jobs have their pods."""
        # The namespace controller looks again after half of the longest grace period that it has seen.
        job = manifest("resident", nodes=pods, template={"spec": {"terminationGracePeriodSeconds": 10}})
        items = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in namespaces]
        items += [{**job, "metadata": {**job["metadata"], "namespace": name}} for name in namespaces]
        installation.cluster.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        for name in namespaces:
            installation.wait_for_pods("resident", pods, name)
        return [cls(installation, name) for name in namespaces]

    @cached_property
    def kubelet(self) -> Kubelet:
        return Kubelet(self.installation, "resident", self.namespace)

    def pods(self) -> list[dict[str, Any]]:
        """Those that run or may run."""
        return self.installation.running_pods("resident", self.namespace)

    def train(self) -> None:
        for pod in self.pods():
            self.kubelet.bind(pod)
            self.kubelet.train(pod)

    def job(self) -> dict[str, Any]:
        """The Kubernetes Job."""
        return self.installation.get("job", "resident", self.namespace)

    def ends(self) -> bool:
        """Whether the namespace is gone; its pods end on their node meanwhile."""
        if self.installation.find("namespace", self.namespace) is None:
            return True
        self.kubelet.remove_deleted()
        return False


def delete_namespaces(*residents: Resident) -> None:
    """Delete the namespaces, and wait until they are gone."""
    names = [resident.namespace for resident in residents]
    residents[0].installation.cluster.kubectl("delete", "namespace", *names, "--wait=false")
    left = set(names)

    def gone() -> bool:
        left.difference_update([resident.namespace for resident in residents if resident.namespace in left and resident.ends()])
        return not left

    try:
        until("the namespaces are gone", gone)
    except AssertionError as error:
        raise AssertionError(f"{error}: {', '.join(sorted(left))}") from error


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


def test_an_operator_takes_back_what_was_released_before_it_was_there(installation: Installation) -> None:
    def retries() -> tuple[int, bool]:
        """The limit of failures, and whether it is on record that it was lowered."""
        job = installation.get("job", "kept")
        return job["spec"]["backoffLimit"], "rewardfl.io/released" in job["metadata"]["annotations"]

    with installation.operator():
        kubelet, pods = staging(installation, "kept")
        installation.release()
        for pod in pods:
            kubelet.train(pod)
        kubelet.report(phase="Training", step=1, total_steps=40)
        until("the operator has looked at it again", lambda: installation.phase("kept") == "Training")
        assert retries() == (0, True), "the one that is being uninstalled leaves it"
    with installation.operator():
        until("it is as before", lambda: retries() == (UNLIMITED, False))
    before = installation.get("job", "kept")["metadata"]["generation"]
    with installation.operator():
        kubelet.report(phase="Training", step=2, total_steps=40)
        until("another one, after an upgrade, has looked at it", lambda: installation.status("kept").get("step") == 2)
        assert installation.get("job", "kept")["metadata"]["generation"] == before
    installation.cluster.kubectl("delete", "rewardfljob", "kept", "--wait=false")


def test_a_gang_that_cannot_be_waited_for_ends_when_it_is_released(installation: Installation, operator: Operator) -> None:
    kubelet, pods = staging(installation, "hopeless")
    for pod in pods:
        kubelet.end(pod, 1, container="stage")

    installation.release("--patience-seconds", "0")

    until("it has ended", lambda: installation.phase("hopeless") == "Failed")
    assert installation.get("job", "hopeless")["spec"]["backoffLimit"] == 1, "one failure of two is too many"
    until("its pods are let go", lambda: not any("finalizers" in pod["metadata"] for pod in installation.pods("hopeless")))
    installation.cluster.kubectl("delete", "rewardfljob", "hopeless", "--wait=false")


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
    (doomed,) = Resident.settle(installation, "doomed")
    until("its status", lambda: installation.phase("resident", "doomed") == "Pending")

    delete_namespaces(doomed)


def test_without_the_operator_nothing_of_a_job_or_of_its_namespace_hangs(installation: Installation, operator: Operator) -> None:
    (alone,) = Resident.settle(installation, "left-alone", pods=1)
    gangs = Resident.settle(
        installation, *(f"left-{state}" for state in ("pending", "running", "suspended", "broken", "drained"))
    )
    pending, running, suspended, broken, drained = gangs
    for gang in (running, suspended, broken, drained):
        gang.train()
    suspended.kubelet.end(suspended.pods()[1], 1)
    stop = {"spec": {"runPolicy": {"suspend": True}}}
    installation.patch("rewardfljob", "resident", stop, namespace=suspended.namespace)
    until("it is suspended", lambda: installation.phase("resident", suspended.namespace) == "Suspended")
    operator.kill()
    broken.kubelet.end(broken.pods()[1], 1)
    for pod in drained.pods():
        evict(installation, pod)
        drained.kubelet.end(pod, 143)

    installation.release()
    installation.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--no-hooks", "--wait")

    assert [gang.job()["spec"]["backoffLimit"] for gang in (alone, pending, running, broken, drained)] == [3, 0, 0, 1, 0]
    assert installation.find("job", "resident", suspended.namespace) is None
    assert [len(gang.pods()) for gang in (broken, drained)] == [2, 2], "it has waited for them"
    delete_namespaces(alone, *gangs)
