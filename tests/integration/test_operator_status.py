"""The status on a real API server: what failed and how often outlives pods and operator; every change of phase is told once."""

import json
import re
import urllib.request
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from rewardfl_api.errors import Reason, TerminationMessage
from tests.integration.operator_harness import Installation, Kubelet, Operator, manifest, until

pytestmark = pytest.mark.slow

PHASES = ("Pending", "Staging", "Preparing", "Training", "Saving", "Succeeded")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation.start(tmp_path_factory.mktemp("status")) as running:
        yield running


def training(installation: Installation, name: str, **spec: Any) -> tuple[Kubelet, list[dict[str, Any]]]:
    """A job whose pods all train."""
    installation.create(manifest(name, **spec))
    kubelet, pods = Kubelet(installation, name), installation.wait_for_pods(name, spec.get("nodes", 2))
    until(f"{name} is pending", lambda: installation.phase(name) == "Pending")
    for pod in pods:
        kubelet.stage(pod)
    until(f"{name} stages", lambda: installation.phase(name) == "Staging")
    for pod in pods:
        kubelet.train(pod)
    until(f"{name} prepares", lambda: installation.phase(name) == "Preparing")
    return kubelet, pods


def reconciles(operator: Operator) -> float:
    """How often the operator has looked at a job."""
    port = re.search(r"health on port (\d+)", operator.text())
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=5) as answer:
        found = re.search(r"^rewardfl_reconcile_duration_seconds_count (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found is not None else 0.0


def left_behind(reason: Reason, text: str, rank: int, log_tail: str) -> str:
    now = datetime.now(UTC).timestamp()
    left = TerminationMessage(reason=reason, message=text, hint="Do this.", exit_code=1, rank=rank, time=now, log_tail=log_tail)
    return json.dumps(left.to_kubernetes())


def renew(installation: Installation, kubelet: Kubelet, name: str, old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Play the kubelet until all pods are new ones, and let them train."""
    gone = {pod["metadata"]["uid"] for pod in old}

    def renewed() -> list[dict[str, Any]]:
        kubelet.remove_deleted()
        running = installation.running_pods(name)
        return running if len(running) == len(old) and not gone & {pod["metadata"]["uid"] for pod in running} else []

    pods: list[dict[str, Any]] = until("all pods are new ones", renewed)
    for pod in pods:
        kubelet.stage(pod)
    for pod in pods:
        kubelet.train(pod)
    return pods


def test_what_failed_and_why_outlives_the_pods_and_the_operator(installation: Installation) -> None:
    with installation.operator():
        kubelet, pods = training(installation, "history", runPolicy={"backoffLimit": 2})
        kubelet.report(phase="Training", step=7, total_steps=40, metrics={"seconds_per_step": 1})
        until("it trains", lambda: installation.status("history").get("progress") == "7/40")
        assert installation.condition("history", "ProgressStale")["status"] == "False"

        kubelet.end(pods[1], 1, left_behind(Reason.OUT_OF_MEMORY, "CUDA out of memory.", 1, "step 7\nTraceback"))
        again = renew(installation, kubelet, "history", pods)
        until("figures are old", lambda: installation.condition("history", "ProgressStale").get("reason") == "EarlierAttempt")
        kubelet.report(phase="Training", step=5, total_steps=40)
        until("figures are new", lambda: installation.condition("history", "ProgressStale").get("reason") == "ProgressCurrent")
        assert installation.status("history")["progress"] == "5/40"

    failure = installation.status("history")["failure"]
    assert (failure["reason"], failure["rank"], failure["pod"]) == ("OutOfMemory", 1, pods[1]["metadata"]["name"])
    assert (failure["message"], failure["hint"], failure["logTail"]) == ("CUDA out of memory.", "Do this.", "step 7\nTraceback")
    installation.cluster.kubectl("delete", "pod", pods[1]["metadata"]["name"], "--grace-period=0", "--force")
    with installation.operator():
        kubelet.end(again[0], 1, left_behind(Reason.IO_FAILED, "disk.", 0, ""))
        until("two restarts", lambda: installation.status("history").get("restarts") == 2)

        history = installation.status("history")["restartHistory"]
        assert [(item["reason"], item["exitCode"], item["counted"]) for item in history] == [
            ("OutOfMemory", 1, True),
            ("IoFailed", 1, True),
        ]
        assert installation.status("history")["failure"]["reason"] == "IoFailed"


def test_every_change_of_phase_is_one_event_also_when_the_operator_is_killed_in_between(installation: Installation) -> None:
    with installation.operator() as first:
        kubelet, pods = training(installation, "told", nodes=1)
        first.kill()
    with installation.operator():
        kubelet.report(phase="Training", step=1, total_steps=2)
        until("training", lambda: installation.phase("told") == "Training")
        kubelet.report(phase="Saving", step=2, total_steps=2)
        until("saving", lambda: installation.phase("told") == "Saving")
        kubelet.end(pods[0])
        until("succeeded", lambda: installation.phase("told") == "Succeeded")

    told = Counter(event["reason"] for event in installation.events("told"))
    assert {phase: told[phase] for phase in PHASES} == dict.fromkeys(PHASES, 1)


def test_a_status_that_says_the_same_is_not_written_again(installation: Installation) -> None:
    with installation.operator() as operator:
        training(installation, "quiet", nodes=1)
        before = installation.get("rewardfljob", "quiet")["metadata"]["resourceVersion"]
        turns = reconciles(operator)
        (pod,) = installation.running_pods("quiet")
        installation.patch("pod", pod["metadata"]["name"], {"metadata": {"annotations": {"touched": "1"}}})
        until("it was looked at", lambda: reconciles(operator) > turns)

        assert installation.get("rewardfljob", "quiet")["metadata"]["resourceVersion"] == before


HOSTILE_REPORTS = (
    "[" * 16_000,
    '{"phase": "Training", "time": "0001-01-01T00:00:00+14:00", "step": 1}',
    '{"phase": "Training", "time": "2999-01-01T00:00:00Z", "step": 1, "total_steps": 2}',
    '{"phase": "Training", "time": "2026-01-01T00:00:00Z", "metrics": {"loss": NaN}}',
)
HOSTILE_STATUS = {
    "phase": "Training",
    "lastProgressTime": "9999-12-31T23:59:59Z",
    "startTime": "0001-01-01T00:00:00Z",
    "failure": {"time": "9999-12-31T23:59:59Z", "reason": "x" * 64},
    "restartHistory": [{"time": "9999-12-31T23:59:59Z", "reason": "?", "counted": True}] * 10,
    "conditions": [
        {"type": "Failed", "status": "Unknown", "reason": "?", "message": "", "lastTransitionTime": "0001-01-01T00:00:00Z"}
    ],
}


def test_whatever_is_written_to_one_jobs_objects_the_operator_lives_and_that_job_and_others_go_on(
    installation: Installation,
) -> None:
    with installation.operator() as operator:
        kubelet, pods = training(installation, "hostile", nodes=1, runPolicy={"backoffLimit": 5})
        for text in HOSTILE_REPORTS:
            kubelet.report_text(text)
            until("it was looked at", lambda: "ProgressIgnored" in {e["reason"] for e in installation.events("hostile")})
        large = {"metadata": {"annotations": {"example.com/large": "x" * 100_000, "kopf.zalando.org/last-handled": "{"}}}
        for kind in ("rewardfljob", "job"):
            installation.patch(kind, "hostile", large)
        installation.patch("job", "hostile", {"metadata": {"annotations": {"rewardfl.io/shape": None}}})
        installation.patch("configmap", "hostile-progress", {"data": {"other": "x"}, "binaryData": {"b": "/w=="}})
        installation.patch("rewardfljob", "hostile", {"status": HOSTILE_STATUS}, subresource="status")
        kubelet.report(phase="Training", step=1, total_steps=2)
        until("a good report counts", lambda: installation.status("hostile").get("progress") == "1/2")
        kubelet.end(pods[0], 74, "[" * 4096)
        until("the failure is told", lambda: installation.status("hostile").get("failure", {}).get("exitCode") == 74)
        assert "9999" not in json.dumps(installation.status("hostile"))

        kubelet, pods = training(installation, "bystander", nodes=1)
        kubelet.end(pods[0])
        until("another job succeeds", lambda: installation.phase("bystander") == "Succeeded")
        assert (operator.process.poll(), operator.health("/healthz")) == (None, 200)
        assert "Traceback" not in operator.text()


KL_GUARD: dict[str, Any] = {"kl": {"max": 0.5, "steps": 2}}


def trip(action: str, step: int) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat()
    return {"reason": "KlTooHigh", "action": action, "step": step, "time": now, "message": "The KL was 0.8, above 0.5."}


def counted_trips(operator: Operator) -> float:
    port = re.search(r"health on port (\d+)", operator.text())
    assert port is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=5) as answer:
        found = re.search(r'^rewardfl_guard_trips_total{reason="KlTooHigh"} (\S+)$', answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found is not None else 0.0


def suspended(installation: Installation, kubelet: Kubelet, name: str) -> bool:
    kubelet.remove_deleted()
    return installation.phase(name) == "Suspended" and "Pod" not in {child["kind"] for child in installation.children(name)}


def test_a_job_that_its_guard_suspends_goes_on_when_its_user_says_so_and_is_suspended_again_by_the_next_broken_rule(
    installation: Installation,
) -> None:
    with installation.operator():
        kubelet, _ = training(installation, "paused", nodes=1, guard={"action": "Suspend", **KL_GUARD})
        kubelet.report(phase="Training", step=6, total_steps=40)
        until("armed", lambda: installation.condition("paused", "GuardTripped").get("status") == "False")
        first = trip("Suspend", 7)
        kubelet.report(phase="Training", step=7, total_steps=40, guard=first)
        until("its guard has suspended it", lambda: suspended(installation, kubelet, "paused"))
        assert installation.get("rewardfljob", "paused")["spec"]["runPolicy"]["suspend"] is True
        held = installation.condition("paused", "Suspended")
        assert (held["reason"], held["message"][:46]) == ("KlTooHigh", "The guard suspended the job after step 7 of 40")
        assert [event["type"] for event in installation.events("paused") if event["reason"] == "KlTooHigh"] == ["Warning"]

    released = {"metadata": {"annotations": {"rewardfl.io/guard-tripped": None}}, "spec": {"runPolicy": {"suspend": False}}}
    installation.patch("rewardfljob", "paused", released)  # as kubectl replace does with the manifest as it once was
    with installation.operator() as operator:  # another one, which knows only what is written
        for pod in installation.wait_for_pods("paused", 1):
            kubelet.stage(pod)
            kubelet.train(pod)
        kubelet.report(phase="Training", step=8, total_steps=40, guard=first)
        until("it goes on", lambda: installation.status("paused").get("step") == 8)
        assert installation.condition("paused", "GuardTripped")["reason"] == "GuardArmed"
        assert installation.get("rewardfljob", "paused")["spec"]["runPolicy"]["suspend"] is False
        assert counted_trips(operator) == 0
        kubelet.report(phase="Training", step=9, total_steps=40, guard=trip("Suspend", 9))
        until("suspended again", lambda: suspended(installation, kubelet, "paused"))
        assert counted_trips(operator) == 1


def test_a_run_that_its_guard_stops_is_a_job_that_succeeded_for_a_reason(installation: Installation) -> None:
    with installation.operator() as operator:
        kubelet, [pod] = training(installation, "stopped", nodes=1, guard=KL_GUARD)
        best = {"bestCheckpoint": {"step": 5, "score": 0.7, "uri": "s3://results/stopped/checkpoints/step-5"}}
        told = {"step": 7, "total_steps": 40, "guard": trip("Stop", 7), "results": best}
        kubelet.report(phase="Saving", **told)
        until("the guard has stopped it", lambda: installation.condition("stopped", "GuardTripped").get("status") == "True")
        assert installation.get("rewardfljob", "stopped")["spec"]["runPolicy"]["suspend"] is False
        kubelet.end(pod)
        until("it has succeeded", lambda: installation.phase("stopped") == "Succeeded")
        ended = installation.condition("stopped", "Succeeded")
        assert (ended["status"], ended["reason"]) == ("True", "KlTooHigh")
        assert "after step 7 of 40. The KL was 0.8, above 0.5. The best checkpoint is s3://results/stopped/" in ended["message"]
        assert installation.status("stopped")["results"]["bestCheckpoint"]["score"] == 0.7
        assert counted_trips(operator) == 1
