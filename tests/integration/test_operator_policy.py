"""What the run policy, edits and queues do to a job, with the real Job controller."""

import json
import time
from typing import Any

import pytest

from tests.integration.operator_harness import Installation, Kubelet, Operator, manifest, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("never_refused")]

Raw = dict[str, Any]
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def training(installation: Installation, job: str, count: int = 2, **spec: Any) -> tuple[Kubelet, list[Raw]]:
    """Create a job and bring its pods to training."""
    installation.create(manifest(job, nodes=count, **spec))
    return start(installation, job, count)


def start(installation: Installation, job: str, count: int) -> tuple[Kubelet, list[Raw]]:
    """Bring the pods of a job to training."""
    kubelet, pods = Kubelet(installation, job), installation.wait_for_pods(job, count)
    for pod in pods:
        kubelet.stage(pod)
        kubelet.train(pod)
    return kubelet, pods


def edit(installation: Installation, job: str, **spec: Any) -> None:
    installation.patch("rewardfljob", job, {"spec": spec})


def suspend(installation: Installation, job: str, value: bool = True) -> None:
    edit(installation, job, runPolicy={"suspend": value})


def label(installation: Installation, job: str, **labels: str | None) -> None:
    installation.patch("rewardfljob", job, {"metadata": {"labels": labels}})


def uid(raw: Raw | None) -> str:
    return str(raw["metadata"]["uid"]) if raw is not None else ""


def stopped(installation: Installation, kubelet: Kubelet, job: str) -> bool:
    """Let pods end that were told to; whether none is left."""
    kubelet.remove_deleted()
    return not everything_of(installation, job)


def replaced(installation: Installation, kubelet: Kubelet, job: str, old: list[Raw]) -> bool:
    """Let pods end that were told to; whether two run and `old` are none of them."""
    kubelet.remove_deleted()
    running = {uid(pod) for pod in installation.running_pods(job)}
    return len(running) == 2 and not running & {uid(pod) for pod in old}


def everything_of(installation: Installation, job: str) -> list[Raw]:
    """The pods, those that are being deleted as well."""
    return list(
        json.loads(installation.cluster.kubectl("get", "pods", "-l", f"rewardfl.io/job-name={job}", "-o", "json"))["items"]
    )


def test_a_job_created_suspended_makes_no_pods_until_it_is_resumed(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("held", nodes=1, runPolicy={"suspend": True}))

    until("suspended", lambda: installation.phase("held") == "Suspended")
    assert installation.find("configmap", "held-config") is not None
    assert installation.find("job", "held") is None
    suspend(installation, "held", False)

    installation.wait_for_pods("held", 1)
    until("it goes on", lambda: installation.condition("held", "Suspended")["status"] == "False")


def test_a_suspended_job_stops_its_pods_keeps_what_they_saved_and_goes_on(installation: Installation, operator: Operator) -> None:
    kubelet, pods = training(installation, "paused", runPolicy={"backoffLimit": 0})
    kubelet.report(phase="Training", step=7, total_steps=40)
    until("training", lambda: installation.status("paused").get("step") == 7)
    job = uid(installation.find("job", "paused"))

    suspend(installation, "paused")
    until("told to stop", lambda: all("deletionTimestamp" in pod["metadata"] for pod in everything_of(installation, "paused")))
    assert [pod["metadata"]["deletionGracePeriodSeconds"] for pod in everything_of(installation, "paused")] == [300, 300]
    saved = {"step": 8, "uri": "s3://results/paused/checkpoints/step-8", "time": "2026-01-01T00:00:00Z"}
    kubelet.report(phase="Training", step=8, total_steps=40, checkpoint=saved)
    until("stopped", lambda: stopped(installation, kubelet, "paused"))

    until("the checkpoint is known", lambda: installation.status("paused").get("checkpoint", {}).get("step") == 8)
    until("suspended", lambda: installation.phase("paused") == "Suspended")
    suspend(installation, "paused", False)
    fresh = installation.wait_for_pods("paused", 2)
    assert not {uid(pod) for pod in pods} & {uid(pod) for pod in fresh}
    assert uid(installation.find("job", "paused")) == job
    until("it goes on", lambda: installation.condition("paused", "Suspended")["status"] == "False")
    assert installation.status("paused")["restarts"] == 0


def test_an_edit_while_nobody_looked_stops_the_pods_before_the_new_ones_start(installation: Installation) -> None:
    with installation.operator():
        kubelet, old = training(installation, "quick")
        until("preparing", lambda: installation.phase("quick") == "Preparing")
    suspend(installation, "quick")
    edit(installation, "quick", nodes=1, training={"learningRate": 1e-3}, runPolicy={"suspend": False})
    job = uid(installation.get("job", "quick"))

    with installation.operator() as operator:
        until("the old pods are told to stop", lambda: not installation.running_pods("quick"))
        until("it waits for them", lambda: "the Kubernetes Job is being removed" in operator.text())
        assert uid(installation.find("job", "quick")) == job, "the old pods still save their checkpoint"
        assert {uid(pod) for pod in everything_of(installation, "quick")} == {uid(pod) for pod in old}
        kubelet.remove_deleted()

        (fresh,) = installation.wait_for_pods("quick", 1)
        assert uid(fresh) not in {uid(pod) for pod in old}
        assert installation.get("job", "quick")["spec"]["completions"] == 1
        assert "0.001" in installation.get("configmap", "quick-config")["data"]["config.yaml"]


def test_kubectl_scale_changes_the_nodes_of_a_suspended_job(installation: Installation, operator: Operator) -> None:
    kubelet, _ = training(installation, "scaled", count=1)
    suspend(installation, "scaled")
    until("stopped", lambda: stopped(installation, kubelet, "scaled"))
    installation.cluster.kubectl("scale", "rewardfljob", "scaled", "--replicas=3")
    suspend(installation, "scaled", False)

    pods = installation.wait_for_pods("scaled", 3)
    variables = {item["name"]: item.get("value") for item in pods[0]["spec"]["containers"][0]["env"]}
    assert variables["PET_NNODES"] == "3"


def evict(installation: Installation, pod: Raw) -> None:
    """What `kubectl drain` does to a pod."""
    name = pod["metadata"]["name"]
    file = installation.folder / "eviction.json"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    file.write_text(json.dumps(eviction), encoding="utf-8")
    installation.cluster.kubectl("create", "--raw", f"/api/v1/namespaces/default/pods/{name}/eviction", "-f", str(file))


def test_a_pod_whose_peer_vanished_while_nobody_looked_starts_again(installation: Installation) -> None:
    with installation.operator():
        kubelet, pods = training(installation, "orphan", runPolicy={"backoffLimit": 0})
        time.sleep(1)  # Kubernetes' times are whole seconds, and the report has to be later than the start
        kubelet.report(phase="Training", step=3, total_steps=40)
        until("training", lambda: installation.phase("orphan") == "Training")
    evict(installation, pods[1])
    until("it was replaced", lambda: replaced(installation, kubelet, "orphan", pods[1:]))

    with installation.operator():
        until("its peer of before is, too", lambda: replaced(installation, kubelet, "orphan", pods))
        assert installation.status("orphan")["restarts"] == 0, "disruptions are not counted"
        assert not installation.condition("orphan", "Failed")


def test_a_deadline_counts_only_while_the_job_runs(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("late", nodes=1, runPolicy={"activeDeadlineSeconds": 1, "suspend": True}))
    training(installation, "overdue", count=1)
    edit(installation, "overdue", runPolicy={"activeDeadlineSeconds": 1})
    until("failed", lambda: installation.phase("overdue") == "Failed")
    assert installation.condition("overdue", "Failed")["reason"] == "DeadlineExceeded"
    assert installation.phase("late") == "Suspended"

    suspend(installation, "late", False)

    until("failed", lambda: installation.phase("late") == "Failed")
    assert installation.condition("late", "Failed")["reason"] == "DeadlineExceeded"


@pytest.mark.parametrize(("policy", "left"), [("All", 0), ("Running", 1), ("None", 1)])
def test_pods_that_have_ended_are_kept_unless_the_policy_says_all(
    installation: Installation, operator: Operator, policy: str, left: int
) -> None:
    name = f"clean-{policy.lower()}"
    kubelet, (pod,) = training(installation, name, count=1, runPolicy={"cleanPodPolicy": policy})
    kubelet.end(pod)
    until("succeeded", lambda: installation.phase(name) == "Succeeded")

    until("cleaned", lambda: len(everything_of(installation, name)) == left)
    assert installation.get("job", name)["status"]["succeeded"] == 1


def test_whatever_a_trainer_writes_reaches_the_status(installation: Installation, operator: Operator) -> None:
    """gloo ends one of its errors with a beach umbrella, and an apply is read as YAML."""
    text = "GLHF! \U0001f3d6\ufe0f \u4e2d\u6587"
    kubelet, _ = training(installation, "babel", count=1)

    kubelet.report(phase="Training", step=1, total_steps=40, message=text)

    until("training", lambda: installation.phase("babel") == "Training")
    assert installation.condition("babel", "Running")["message"] == text


def test_a_job_of_another_controller_is_left_alone(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("foreign", managedBy="kueue.x-k8s.io/multikueue"))
    until("it says so", lambda: "left to kueue.x-k8s.io/multikueue" in operator.text())
    installation.create(manifest("own", nodes=1, managedBy="rewardfl.io/operator"))
    installation.wait_for_pods("own", 1)

    assert installation.children("foreign") == []
    assert installation.status("foreign") == {}


def test_a_queued_job_waits_for_its_queue_and_nobody_is_fought(installation: Installation) -> None:
    queued = manifest("queued")
    queued["metadata"]["labels"] = {QUEUE: "gpus", PRIORITY: "low"}
    with installation.operator():
        installation.create(queued)
        until("queued", lambda: installation.phase("queued") == "Queued")
        labels = installation.get("job", "queued")["metadata"]["labels"]
        assert (labels[QUEUE], labels[PRIORITY]) == ("gpus", "low")
        assert installation.pods("queued") == []
        label(installation, "queued", **{QUEUE: "other", PRIORITY: "high"})
        until("moved", lambda: installation.get("job", "queued")["metadata"]["labels"][QUEUE] == "other")
        let_run(installation, "queued", True)
        kubelet, _ = start(installation, "queued", 2)
        until("preparing", lambda: installation.phase("queued") == "Preparing")
    with installation.operator():
        let_run(installation, "queued", False)  # as a preemption does, while the operator starts
        until("stopped", lambda: stopped(installation, kubelet, "queued"))
        until("queued again", lambda: installation.phase("queued") == "Queued")
        assert "kubectl-patch" in writers_of_suspend(installation, "queued")
        assert "rewardfl-operator" not in writers_of_suspend(installation, "queued")


def writers_of_suspend(installation: Installation, job: str) -> set[str]:
    """Who has written the Kubernetes Job's `suspend` as it is now."""
    fields = installation.get("job", job, managed_fields=True)["metadata"]["managedFields"]
    return {item["manager"] for item in fields if "f:suspend" in item["fieldsV1"].get("f:spec", {})}


def let_run(installation: Installation, job: str, value: bool) -> None:
    """What Kueue does when it admits or preempts a job."""
    installation.patch("job", job, {"spec": {"suspend": not value}})


def test_a_queued_job_that_is_suspended_leaves_the_queue(installation: Installation, operator: Operator) -> None:
    queued = manifest("leaving", nodes=1)
    queued["metadata"]["labels"] = {QUEUE: "gpus"}
    installation.create(queued)
    until("queued", lambda: installation.phase("leaving") == "Queued")
    let_run(installation, "leaving", True)
    kubelet, _ = start(installation, "leaving", 1)

    suspend(installation, "leaving")
    until("stopped", lambda: not installation.running_pods("leaving"))
    kubelet.remove_deleted()
    until("there is nothing that a queue could let run", lambda: installation.find("job", "leaving") is None)
    until("suspended", lambda: installation.phase("leaving") == "Suspended")
    suspend(installation, "leaving", False)

    until("queued", lambda: installation.phase("leaving") == "Queued")
    assert installation.get("job", "leaving")["spec"]["suspend"] is True


def test_a_job_that_leaves_its_queue_runs(installation: Installation, operator: Operator) -> None:
    queued = manifest("unqueued", nodes=1)
    queued["metadata"]["labels"] = {QUEUE: "gpus"}
    installation.create(queued)
    until("queued", lambda: installation.phase("unqueued") == "Queued")

    label(installation, "unqueued", **{QUEUE: None})

    installation.wait_for_pods("unqueued", 1)


def test_a_job_that_somebody_suspends_by_hand_stays_so(installation: Installation, operator: Operator) -> None:
    kubelet, _ = training(installation, "by-hand", count=1)
    let_run(installation, "by-hand", False)
    until("stopped", lambda: stopped(installation, kubelet, "by-hand"))

    until("it says so", lambda: "by somebody else" in installation.condition("by-hand", "Suspended").get("message", ""))
    assert installation.get("job", "by-hand")["spec"]["suspend"] is True
