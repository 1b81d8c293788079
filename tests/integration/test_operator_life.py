"""The operator on a real control plane, under exactly the chart's role: objects, status, faults, deletion."""

import json
import time
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_operator.reading import NODE_CLOCK_TOLERANCE
from tests.cluster import ClusterError
from tests.integration.operator_harness import Installation, Kubelet, Operator, index_of, manifest, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("never_refused")]


def names(children: list[dict[str, Any]], job: str) -> list[str]:
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in children if item["kind"] != "Pod")


def expected_names(job: str) -> list[str]:
    return [
        f"ConfigMap/{job}-config",
        f"ConfigMap/{job}-progress",
        f"Job/{job}",
        f"NetworkPolicy/{job}",
        f"Role/{job}-trainer",
        f"RoleBinding/{job}-trainer",
        f"Service/{job}",
        f"ServiceAccount/{job}-trainer",
    ]


def message(reason: Reason, text: str, code: int, hint: str = "") -> str:
    return json.dumps({"reason": reason, "message": text, "hint": hint, "exitCode": code, "rank": 0, "time": 1.0})


def training(installation: Installation, job: str, **spec: Any) -> tuple[Kubelet, list[dict[str, Any]]]:
    """Create a job and bring its two pods to training."""
    installation.create(manifest(job, **spec))
    kubelet = Kubelet(installation, job)
    pods = installation.wait_for_pods(job, 2)
    for pod in pods:
        kubelet.stage(pod)
    for pod in pods:
        kubelet.train(pod)
    return kubelet, pods


def test_a_job_gets_its_objects_once_and_its_pods(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("made"))

    pods = installation.wait_for_pods("made", 2)

    assert names(installation.children("made"), "made") == expected_names("made")
    assert [index_of(pod) for pod in pods] == [0, 1]
    until("the status says so", lambda: installation.condition("made", "Accepted").get("status") == "True")
    assert installation.phase("made") == "Pending"


def test_pods_may_patch_their_own_progress_and_nothing_else(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("allowed"))
    installation.wait_for_pods("allowed", 2)

    def may(verb: str, what: str) -> bool:
        account = "--as=system:serviceaccount:default:allowed-trainer"
        try:
            return installation.cluster.kubectl("auth", "can-i", verb, what, account).strip() == "yes"
        except ClusterError:
            return False

    assert may("patch", "configmap/allowed-progress")
    assert may("get", "configmap/allowed-progress")
    for verb, what in (
        ("patch", "configmap/allowed-config"),
        ("delete", "configmap/allowed-progress"),
        ("list", "configmaps"),
        ("get", "secrets"),
        ("patch", "rewardfljobs/allowed"),
    ):
        assert not may(verb, what), (verb, what)


def test_the_status_follows_a_job_to_its_success(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("good"))
    kubelet = Kubelet(installation, "good")
    pods = installation.wait_for_pods("good", 2)
    seen = [until("pending", lambda: installation.phase("good"))]
    for pod in pods:
        kubelet.stage(pod)
    files = [{"name": "vae.pth", "state": "cached", "bytesDone": 20, "bytesTotal": 20}]
    files.append({"name": "low/1.safetensors", "state": "fetching", "bytesDone": 5, "bytesTotal": 80})
    counts = {"filesDone": 1, "filesTotal": 2, "filesCached": 1, "bytesCached": 20}
    staging = {"bytesDone": 25, "bytesTotal": 100, "bytesPerSecond": 5, **counts, "files": files}
    kubelet.report(phase="Staging", staging=staging)
    until("staged bytes", lambda: installation.status("good").get("percent") == 25)
    assert installation.status("good")["staging"] == staging
    assert installation.status("good")["eta"] == "15s"
    seen.append(installation.phase("good"))
    for pod in pods:
        kubelet.train(pod)
    seen.append(until("preparing", lambda: (phase := installation.phase("good")) == "Preparing" and phase))
    kubelet.report(phase="Training", step=12, total_steps=40, eta_seconds=4335, metrics={"reward": 0.6123})
    seen.append(until("training", lambda: (phase := installation.phase("good")) == "Training" and phase))

    header, line = installation.cluster.kubectl("get", "rewardfljobs", "good").splitlines()[:2]
    assert header.split() == ["NAME", "PHASE", "STEP", "PROGRESS", "REWARD", "ETA", "AGE"]
    assert line.split()[:-1] == ["good", "Training", "12/40", "30", "0.612", "1h12m"]

    results = {"lora": "s3://results/good/lora.safetensors"}
    kubelet.report(phase="Saving", step=40, total_steps=40, metrics={"reward": 0.7}, results=results)
    seen.append(until("saving", lambda: (phase := installation.phase("good")) == "Saving" and phase))
    for pod in pods:
        kubelet.end(pod)
    seen.append(until("succeeded", lambda: (phase := installation.phase("good")) == "Succeeded" and phase))

    status = installation.status("good")
    assert seen == ["Pending", "Staging", "Preparing", "Training", "Saving", "Succeeded"]
    assert (status["progress"], status["percent"], status["results"]) == ("40/40", 100, results)
    assert installation.condition("good", "Succeeded")["status"] == "True"
    assert {event["reason"] for event in installation.events("good")} >= set(seen)


def test_a_final_error_fails_the_job_at_once_with_reason_and_remedy(installation: Installation, operator: Operator) -> None:
    kubelet, pods = training(installation, "faceless")
    left = message(Reason.NO_FACE_IN_FIRST_FRAME, "row 3: no face in the first frame.", 65, "Replace the video.")

    kubelet.end(pods[1], 65, left)

    until("failed", lambda: installation.phase("faceless") == "Failed")
    failed = installation.condition("faceless", "Failed")
    assert (failed["reason"], failed["message"]) == (
        "NoFaceInFirstFrame",
        "row 3: no face in the first frame. Replace the video.",
    )
    assert installation.status("faceless")["restarts"] == 0
    until("its peer is stopped", lambda: not installation.running_pods("faceless"))


def test_a_dead_rank_restarts_the_whole_gang(installation: Installation, operator: Operator) -> None:
    kubelet, pods = training(installation, "gang", runPolicy={"backoffLimit": 1})
    first = {pod["metadata"]["name"] for pod in pods}

    kubelet.end(pods[1], 137, reason="OOMKilled")

    def renewed() -> bool:
        kubelet.remove_deleted()
        running = installation.running_pods("gang")
        return len(running) == 2 and not first & {pod["metadata"]["name"] for pod in running}

    until("both pods are new ones", renewed)
    for pod in installation.running_pods("gang"):
        kubelet.stage(pod)
    until("it says why", lambda: "OutOfMemory" in installation.condition("gang", "Running").get("message", ""))
    assert installation.condition("gang", "Running")["reason"] == "Restarting"
    assert not installation.condition("gang", "Failed")
    assert installation.status("gang")["restarts"] == 1


def test_a_failure_that_repeats_fails_the_job_when_the_retries_are_used_up(
    installation: Installation, operator: Operator
) -> None:
    installation.create(manifest("stubborn", nodes=1, runPolicy={"backoffLimit": 0}))
    kubelet = Kubelet(installation, "stubborn")
    (pod,) = installation.wait_for_pods("stubborn", 1)
    kubelet.stage(pod)

    kubelet.end(pod, 69, message(Reason.STORAGE_UNAVAILABLE, "dataset=s3://data/faces/: no answer.", 69), container="stage")

    until("failed", lambda: installation.phase("stubborn") == "Failed")
    assert installation.condition("stubborn", "Failed")["reason"] == "StorageUnavailable"


def test_a_missing_secret_is_named_and_heals_by_itself(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("secretless", nodes=1))
    kubelet = Kubelet(installation, "secretless")
    (pod,) = installation.wait_for_pods("secretless", 1)
    kubelet.bind(pod)

    kubelet.wait_with(pod, "CreateContainerConfigError", 'secret "s3-credentials" not found')
    until("named", lambda: installation.condition("secretless", "Running").get("reason") == "SecretMissing")
    kubelet._status(pod, "Pending", stage={"running": {"startedAt": "2026-01-01T00:00:00Z"}}, trainer={"waiting": {}})

    until("healed", lambda: installation.phase("secretless") == "Staging")


def test_an_unschedulable_pod_shows_the_schedulers_message(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("homeless", gpusPerNode=8))

    until("unschedulable", lambda: installation.condition("homeless", "Running").get("reason") == "Unschedulable")

    assert installation.phase("homeless") == "Pending"
    assert "nodes are available" in installation.condition("homeless", "Running")["message"]


def test_a_malformed_report_is_ignored_with_an_event_and_the_next_one_counts(
    installation: Installation, operator: Operator
) -> None:
    kubelet, _ = training(installation, "babble")
    time.sleep(NODE_CLOCK_TOLERANCE.total_seconds() + 1)
    kubelet.report(phase="Training", step=3, total_steps=40)
    until("training", lambda: installation.status("babble").get("progress") == "3/40")

    for text in ("{", "x" * 20_000, '{"phase": "Training", "time": "2026-01-01T00:00:00Z", "step": 1e99}'):
        kubelet.report_text(text)
    until("an event", lambda: "ProgressIgnored" in {event["reason"] for event in installation.events("babble")})
    kubelet.report(phase="Training", step=1, total_steps=40)
    until("a second event", lambda: any("backwards" in event["message"] for event in installation.events("babble")))
    assert installation.status("babble")["progress"] == "3/40"

    kubelet.report(phase="Training", step=4, total_steps=40)
    until("the next report counts", lambda: installation.status("babble").get("progress") == "4/40")


def test_a_damaged_status_is_written_anew(installation: Installation, operator: Operator) -> None:
    training(installation, "damaged")
    until("preparing", lambda: installation.phase("damaged") == "Preparing")

    installation.patch(
        "rewardfljob", "damaged", {"status": {"phase": None, "conditions": [], "percent": 7, "eta": "?"}}, subresource="status"
    )

    until("mended", lambda: installation.phase("damaged") == "Preparing")
    assert installation.condition("damaged", "Accepted")["status"] == "True"


def test_a_template_that_is_not_allowed_is_refused_until_it_is_edited(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("greedy", template={"spec": {"hostNetwork": True}}))

    until("refused", lambda: installation.condition("greedy", "Accepted").get("status") == "False")
    accepted = installation.condition("greedy", "Accepted")
    assert accepted["reason"] == "InvalidTemplate"
    assert "template.spec.hostNetwork=true" in accepted["message"]
    assert "podPolicy.allowHostNamespaces" in accepted["message"]
    assert installation.children("greedy") == []
    assert installation.phase("greedy") == "Failed"

    installation.patch("rewardfljob", "greedy", {"spec": {"template": None}})
    installation.wait_for_pods("greedy", 2)
    until("healed", lambda: installation.condition("greedy", "Accepted").get("status") == "True")
    assert installation.phase("greedy") == "Pending"


def test_a_template_that_the_api_server_refuses_is_reported(installation: Installation, operator: Operator) -> None:
    installation.create(manifest("typo", template={"spec": {"nodeSelektor": {"gpu": "h100"}}}))

    until("refused", lambda: installation.condition("typo", "Accepted").get("reason") == "InvalidTemplate")

    assert "nodeSelektor" in installation.condition("typo", "Accepted")["message"]


def test_a_name_that_is_taken_is_reported_and_the_other_object_left_alone(installation: Installation, operator: Operator) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "taken-config"}, "data": {"mine": "1"}}
    installation.create(config)
    installation.create(manifest("taken"))

    until("reported", lambda: installation.condition("taken", "Accepted").get("status") == "False")

    assert "ConfigMap taken-config exists already" in installation.condition("taken", "Accepted")["message"]
    assert installation.get("configmap", "taken-config")["data"] == {"mine": "1"}
    assert "ownerReferences" not in installation.get("configmap", "taken-config")["metadata"]


def test_training_is_not_edited_while_it_runs_and_is_while_suspended(installation: Installation, operator: Operator) -> None:
    training(installation, "edited")
    faster = {"spec": {"training": {"learningRate": 1e-3}}}

    with pytest.raises(ClusterError, match="cannot be changed while the job runs"):
        installation.patch("rewardfljob", "edited", faster)
    installation.patch("rewardfljob", "edited", {"spec": {"runPolicy": {"suspend": True}}})
    kubelet = Kubelet(installation, "edited")

    def suspended() -> bool:
        kubelet.remove_deleted()
        # Pods that are still ending keep the old Kubernetes Job alive, so none may be left for the kubelet to remove.
        gone = "Pod" not in {child["kind"] for child in installation.children("edited")}
        return installation.phase("edited") == "Suspended" and gone

    until("suspended", suspended)
    installation.patch("rewardfljob", "edited", {"spec": {"nodes": 1, **faster["spec"]}})
    until("the configuration follows", lambda: "0.001" in installation.get("configmap", "edited-config")["data"]["config.yaml"])
    installation.patch("rewardfljob", "edited", {"spec": {"runPolicy": {"suspend": False}}})

    installation.wait_for_pods("edited", 1)
    assert installation.get("job", "edited")["spec"]["completions"] == 1


def test_the_operator_catches_up_with_what_happened_while_it_was_down(installation: Installation, operator: Operator) -> None:
    del operator
    installation.operators[0].kill()
    installation.create(manifest("missed"))
    with installation.operator() as second:
        kubelet, pods = Kubelet(installation, "missed"), installation.wait_for_pods("missed", 2)
        for pod in pods:
            kubelet.stage(pod)
        second.kill()
        for pod in pods:
            kubelet.end(pod)
        until("the Job is complete", lambda: installation.get("job", "missed")["status"].get("succeeded") == 2)
    with installation.operator() as third:
        until("succeeded", lambda: installation.phase("missed") == "Succeeded")
        assert third.stop() == 0


def test_a_deleted_job_leaves_nothing_behind_even_without_the_operator(installation: Installation) -> None:
    with installation.operator():
        kubelet, _ = training(installation, "gone")
        installation.create(manifest("gone-too"))
        installation.wait_for_pods("gone-too", 2)
    installation.cluster.kubectl("delete", "rewardfljob", "gone", "gone-too", "--wait=false")

    def nothing_left() -> bool:
        kubelet.remove_deleted()
        return not installation.children("gone") and not installation.children("gone-too")

    until("all children are gone", nothing_left)
    assert installation.find("rewardfljob", "gone") is None


def test_a_job_of_the_same_name_starts_afresh_after_its_predecessor_was_deleted(installation: Installation) -> None:
    with installation.operator():
        kubelet, pods = training(installation, "again")
        kubelet.report(phase="Training", step=40, total_steps=40)
        until("training", lambda: installation.status("again").get("progress") == "40/40")
        installation.cluster.kubectl("delete", "rewardfljob", "again", "--wait=false")
        until("deleted", lambda: installation.find("rewardfljob", "again") is None)
        installation.create(manifest("again"))
        uid = installation.get("rewardfljob", "again")["metadata"]["uid"]
        old = {pod["metadata"]["uid"] for pod in pods}

        def renewed() -> bool:
            kubelet.remove_deleted()
            found = installation.running_pods("again")
            return len(found) == 2 and not old & {pod["metadata"]["uid"] for pod in found}

        until("new pods", renewed)
        until("all objects are the new job's", lambda: names(installation.children("again"), "again") == expected_names("again"))
        for child in installation.children("again"):
            if child["kind"] != "Pod":
                assert child["metadata"]["ownerReferences"][0]["uid"] == uid, child["kind"]
        assert installation.status("again").get("progress") is None


def test_a_finished_jobs_pods_go_after_their_ttl_and_its_result_stays(installation: Installation) -> None:
    with installation.operator():
        kubelet, pods = training(installation, "brief", runPolicy={"ttlSecondsAfterFinished": 0})
        for pod in pods:
            kubelet.end(pod)
        until("succeeded", lambda: installation.phase("brief") == "Succeeded")

        until("the Kubernetes Job is gone", lambda: installation.find("job", "brief") is None)
        before = installation.status("brief")
        installation.patch("rewardfljob", "brief", {"metadata": {"labels": {"touched": "1"}}})
        until("the pods are gone", lambda: not installation.pods("brief"))

        assert installation.find("job", "brief") is None, "it must not be made, and train, again"
        assert installation.status("brief") == before


def test_the_operator_ends_quickly_and_says_that_it_is_well(installation: Installation) -> None:
    with installation.operator() as operator:
        assert operator.health("/healthz") == 200
        assert operator.stop() == 0
