"""One job that its guard suspends, then its user, loses a rank and is drained: each time it goes on from its last checkpoint."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from examples.demo import read_manifest
from tests.cluster.report import ClusterError, wait_until
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

NAME = "interrupted"
PATIENCE_SECONDS = 300
"""On a machine that does other things as well a step takes ten times as long; a wait ends when its condition holds."""

GUARDED_STEPS = 4
ANY_KL = {"kl": {"max": 1e-12, "steps": GUARDED_STEPS}}
"""An untrained LoRA has a KL of 0; from the second step on it is above that."""

KILL_A_RANK = """
import os, pathlib, signal
ranks = [pid for pid in pathlib.Path("/proc").iterdir() if pid.name.isdigit() and (pid / "stat").read_text().split()[3] == "1"]
os.kill(next(int(pid.name) for pid in ranks if b"rewardfl_trainer.train" in (pid / "cmdline").read_bytes()), signal.SIGKILL)
"""

Raw = dict[str, Any]


@dataclass
class Job:
    """The job, as its user sees it."""

    stack: Stack

    @property
    def status(self) -> Raw:
        return dict(self.stack.job(NAME).get("status") or {})

    def pods(self) -> dict[str, str]:
        """Names of the pods that have not ended, by uid."""
        selector = f"rewardfl.io/job-name={NAME}"
        items = json.loads(self.stack.cluster.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
        return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in items if pod["status"]["phase"] not in ENDED}

    def suspend(self, value: bool, **edits: Any) -> None:
        patch = json.dumps({"spec": {"runPolicy": {"suspend": value}, **edits}})
        self.stack.cluster.kubectl("patch", "rewardfljob", NAME, "--type=merge", "-p", patch)

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        try:
            wait_until(holds, what, timeout_seconds=PATIENCE_SECONDS, poll_seconds=0.5)
        except ClusterError as error:
            raise ClusterError(f"{error}; its status: {json.dumps(self.status, indent=1)}") from error

    def train_beyond(self, step: int) -> list[int]:
        """Wait until it trains and has done more steps than `step`; returns the steps that it has shown on the way."""
        shown: list[int] = []

        def trains() -> bool:
            status = self.status
            if status.get("phase") == "Training":
                shown.append(status["step"])
            return bool(shown) and shown[-1] > step

        self.until(f"it trains beyond step {step}", trains)
        return shown


ENDED = ("Succeeded", "Failed")


@pytest.fixture(scope="module")
def job(stack: Stack) -> Iterator[Job]:
    manifest = read_manifest(stack.storage_spec())
    manifest["metadata"]["name"] = NAME
    spec = manifest["spec"]
    spec["output"] = f"s3://rewardfl/results/{NAME}/"
    spec["training"] |= {"maxSteps": 100_000, "saveSteps": 3}
    spec["guard"] = {"action": "Suspend", **ANY_KL}
    stack.apply(manifest)
    yield Job(stack)
    stack.cluster.kubectl("delete", "rewardfljob", NAME, "--timeout=120s", timeout_seconds=150)


def test_a_job_that_its_guard_suspends_says_why_and_goes_on_from_there_when_its_user_has_changed_the_guard(job: Job) -> None:
    job.until("its guard has suspended it", lambda: job.status.get("phase") == "Suspended")
    job.until("its pods are gone", lambda: not job.pods())
    status = job.status
    assert (status["step"], status["checkpoint"]["step"], status["restarts"]) == (GUARDED_STEPS, GUARDED_STEPS, 0)
    [held] = [item for item in status["conditions"] if item["type"] == "Suspended"]
    assert held["reason"] == "KlTooHigh"
    assert f"suspended the job after step {GUARDED_STEPS} of 100000" in held["message"]

    job.suspend(False, guard=None)

    assert min(job.train_beyond(GUARDED_STEPS)) >= GUARDED_STEPS
    assert "GuardTripped" not in [item["type"] for item in job.status["conditions"]]


def test_a_suspended_job_saves_a_checkpoint_and_goes_on_from_it(job: Job) -> None:
    job.suspend(True)
    job.until("its pods are gone", lambda: not job.pods())
    job.until("the checkpoint at its last step is known", lambda: job.status["checkpoint"]["step"] == job.status["step"])
    status = job.status
    assert (status["phase"], status["step"] > 3) == ("Suspended", True)
    assert status["restarts"] == 0

    job.suspend(False)

    assert min(job.train_beyond(status["step"])) >= status["step"]


def test_a_killed_rank_restarts_the_gang_from_the_last_checkpoint(job: Job) -> None:
    step = job.status["step"]
    job.until("a checkpoint is saved", lambda: job.status["checkpoint"]["step"] > step)
    before, saved = job.pods(), job.status["checkpoint"]["step"]

    job.stack.cluster.kubectl("exec", max(before.values()), "-c", "trainer", "--", "python", "-c", KILL_A_RANK)

    job.until("both pods are others", lambda: len(job.pods()) == 2 and not job.pods().keys() & before.keys())
    assert min(job.train_beyond(saved)) >= saved
    status = job.status
    assert (status["restarts"], len(status["restartHistory"])) == (1, 1), status["restartHistory"]
    assert "SIGKILL" in status["restartHistory"][0]["message"]


def test_a_drained_pod_takes_its_gang_with_it_and_is_not_counted(job: Job) -> None:
    before = job.pods()
    step = job.status["step"]
    name = min(before.values())
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": "default"}}
    path = f"/api/v1/namespaces/default/pods/{name}/eviction"

    job.stack.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))

    job.until("both pods are others", lambda: len(job.pods()) == 2 and not job.pods().keys() & before.keys())
    job.until("its checkpoint is known", lambda: job.status["checkpoint"]["step"] >= step)
    assert job.status["restarts"] == 1, "the killed rank's"
    assert not [item for item in job.status["conditions"] if item["type"] == "Failed"]
