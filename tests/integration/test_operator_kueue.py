"""Two jobs and one place in a queue of the real Kueue: who waits is told why, and nobody fights over the Job's `suspend`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kueue import Kueue
from tests.integration.gpu_page import KUEUES, NAMESPACE, TWO_NODES, example
from tests.integration.operator_harness import Installation, Kubelet, manifest, until

pytestmark = pytest.mark.slow

QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
ASKS_FOR_ONE_CPU = {"spec": {"containers": [{"name": "trainer", "resources": {"requests": {"cpu": "1"}}}]}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A control plane with Kueue and a queue that has room for one pod."""
    folder: Path = tmp_path_factory.mktemp("installation")
    with Installation.start(folder) as installation:
        kueue = Kueue(installation.cluster)
        kueue.queue("gpus", cpus=1)
        for name, value in (("low", 1), ("high", 1000)):
            kueue.priority(name, value)
        yield installation


def queued(installation: Installation, name: str, priority: str) -> Kubelet:
    job = manifest(name, nodes=1, template=ASKS_FOR_ONE_CPU)
    job["metadata"]["labels"] = {QUEUE: "gpus", PRIORITY: priority}
    installation.create(job)
    return Kubelet(installation, name)


def waits_because(installation: Installation, job: str) -> str:
    """What a queued job says of why it waits; empty when it does not wait."""
    return str(installation.condition(job, "Suspended").get("message", "")) if installation.phase(job) == "Queued" else ""


def writers_of_suspend(installation: Installation, job: str) -> set[str]:
    """Who has written the Kubernetes Job's `suspend` as it is now."""
    fields = installation.get("job", job, managed_fields=True)["metadata"]["managedFields"]
    return {item["manager"] for item in fields if "f:suspend" in item["fieldsV1"].get("f:spec", {})}


def owners_of_workloads(installation: Installation) -> set[str]:
    items = json.loads(installation.cluster.kubectl("get", "workloads.kueue.x-k8s.io", "-o", "json"))["items"]
    return {item["metadata"]["ownerReferences"][0]["name"] for item in items}


def test_jobs_take_turns_are_preempted_and_say_why_they_wait(installation: Installation) -> None:
    with installation.operator():
        first = queued(installation, "first", "low")
        (pod,) = installation.wait_for_pods("first", 1)
        first.stage(pod)
        queued(installation, "second", "low")
        until("the second says why it waits", lambda: "insufficient" in waits_because(installation, "second"))
        assert installation.pods("second") == []
        assert "queue gpus" in waits_because(installation, "second")

        first.end(pod)
        second_pods = installation.wait_for_pods("second", 1)
        until("the first has ended", lambda: installation.phase("first") == "Succeeded")
        second = Kubelet(installation, "second")
        second.stage(second_pods[0])
        second.train(second_pods[0])
        until("the second runs", lambda: installation.phase("second") == "Preparing")

    urgent = queued(installation, "urgent", "high")  # while nobody looks
    with installation.operator():
        until("the second makes room", lambda: not installation.running_pods("second"))
        until("it says why", lambda: "Preempted" in waits_because(installation, "second"))
        second.remove_deleted()
        (pod,) = installation.wait_for_pods("urgent", 1)
        assert "rewardfl-operator" not in writers_of_suspend(installation, "second")
        assert writers_of_suspend(installation, "second")
        assert installation.status("second")["restarts"] == 0
        urgent.stage(pod)

        installation.patch("rewardfljob", "urgent", {"spec": {"runPolicy": {"suspend": True}}})
        until("it stops", lambda: not installation.running_pods("urgent"))
        urgent.remove_deleted()
        until("it has left the queue", lambda: "urgent" not in owners_of_workloads(installation))
        installation.wait_for_pods("second", 1)
        assert installation.phase("urgent") == "Suspended"


def test_the_queue_of_the_gpu_page_admits_the_example_for_two_nodes(installation: Installation) -> None:
    installation.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for part in KUEUES:
        installation.create(part)
    job = example(TWO_NODES)
    assert job["metadata"]["labels"] == {QUEUE: "training"}
    installation.create(job)
    with installation.operator():
        pods = installation.wait_for_pods("face-identity-16", 2, NAMESPACE)
    assert {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}.items() <= pods[0]["spec"]["nodeSelector"].items()
