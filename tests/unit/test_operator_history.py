"""What failed, and how often, is remembered longer than pods are."""

import json
from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.status import RESTARTS_KEPT, RewardFLJobStatus
from rewardfl_operator import status
from rewardfl_operator.observed import Children
from tests.unit.operator_objects import (
    START,
    children,
    condition,
    ended,
    job,
    kubernetes_job,
    pod,
    running,
    training_pod,
    waiting,
)

NEW = RewardFLJobStatus()
NOW = START + timedelta(seconds=5000)
EVICTED = condition("DisruptionTarget", reason="EvictionByEvictionAPI", message="Eviction API: evicting", seconds=101)


def derive(seen: Children, previous: RewardFLJobStatus = NEW, **spec: Any) -> RewardFLJobStatus:
    return status.derive(job(**spec), seen, None, previous, NOW)


def message(reason: Reason, text: str, code: int, seconds: float, **more: Any) -> str:
    time = (START + timedelta(seconds=seconds)).timestamp()
    return json.dumps({"reason": reason, "message": text, "exitCode": code, "time": time, **more})


def failed(index: int, code: int, seconds: float, text: str = "", created: float = 0) -> dict[str, Any]:
    left = text or message(Reason.IO_FAILED, "disk.", code, seconds)
    return pod(
        index,
        ended("stage", 0, created, created + 5),
        ended("trainer", code, created + 5, seconds, left),
        phase="Failed",
        created=created,
    )


def test_the_first_failing_rank_is_told_with_its_place_remedy_and_the_end_of_its_log() -> None:
    first = message(Reason.OUT_OF_MEMORY, "CUDA out of memory.", 1, 100, hint="Use zero3.", rank=5, logTail="step 3\nTraceback")
    second = message(Reason.TRAINER_FAILED, "connection closed by peer", 1, 100.5, rank=0, logTail="other")

    found = derive(children(failed(0, 1, 102, second), failed(1, 1, 102, first)))

    assert found.failure is not None
    assert found.failure.model_dump() == {
        "time": START + timedelta(seconds=100),
        "reason": "OutOfMemory",
        "message": "CUDA out of memory.",
        "hint": "Use zero3.",
        "pod": "face-1-0",
        "container": "trainer",
        "rank": 5,
        "exit_code": 1,
        "log_tail": "step 3\nTraceback",
    }


def test_what_a_hijacked_pod_leaves_behind_cannot_move_anybodys_cursor() -> None:
    left = message(Reason.IO_FAILED, "\x1b[2Jgone\x07", 74, 100, hint="\x9b31mred", logTail="a\x1b]0;title\x07\nb\u202e")

    found = derive(children(failed(0, 74, 100, left), training_pod(1, 5)))

    assert found.failure is not None
    assert (found.failure.message, found.failure.hint, found.failure.log_tail) == ("gone", "31mred", "a\nb")
    assert "\x1b" not in found.conditions[2].message


@pytest.mark.parametrize(
    "more", [{"rank": 10**30}, {"logTail": "\t" * 2048}, {"hint": "h" * 1500}, {"logTail": ["no", "text"]}, {"rank": -1}]
)
def test_a_hijacked_pods_message_does_not_stop_its_job_from_being_told_about(more: dict[str, Any]) -> None:
    left = message(Reason.IO_FAILED, "x" * 1500, 74, 100, **more)

    found = derive(children(failed(0, 74, 100, left), training_pod(1, 5)))

    assert RewardFLJobStatus.model_validate(found.to_kubernetes()) == found


@pytest.mark.parametrize(
    "text", ["[" * 4096, '{"reason": ' * 300, "\x00\x1b[2J", '{"reason": "IoFailed", "message": "m", "exitCode": 1e99}']
)
def test_what_is_no_message_at_all_leaves_the_exit_code(text: str) -> None:
    found = derive(children(failed(0, 74, 100, text), training_pod(1, 5)))

    assert found.failure is not None
    assert (found.failure.reason, found.failure.exit_code) == ("IoFailed", 74)


@pytest.mark.parametrize("seconds", [-5000, 90_000, 1e18])
def test_a_failure_at_an_impossible_time_is_that_of_the_containers_end(seconds: float) -> None:
    found = derive(
        children(failed(0, 74, 100, json.dumps({"reason": "IoFailed", "message": "m", "exitCode": 74, "time": seconds})))
    )

    assert found.failure is not None
    assert found.failure.time == START + timedelta(seconds=100)


def test_a_failure_without_a_remedy_of_its_own_gets_its_reasons() -> None:
    found = derive(children(failed(0, 74, 100)))

    assert found.failure is not None
    assert found.failure.hint == "Check the volumes; the job tries again by itself."


def test_a_restart_goes_on_record_once_and_stays_when_its_pods_are_gone() -> None:
    lost = derive(children(failed(0, 74, 100), training_pod(1, 5)))
    again = derive(children(failed(0, 74, 100), training_pod(0, 130, created=110), training_pod(1, 130, created=110)), lost)
    collected = derive(children(training_pod(0, 130, created=110), training_pod(1, 130, created=110)), again)

    (record,) = collected.restart_history
    assert (record.reason, record.pod, record.exit_code, record.counted) == ("IoFailed", "face-0-0", 74, True)
    assert record.time == START + timedelta(seconds=100)
    assert collected.restarts == 1
    assert collected.failure == lost.failure
    assert lost.restart_history == again.restart_history == collected.restart_history


def test_pods_of_an_attempt_that_is_on_record_make_no_second_one() -> None:
    """The pod that failed first is gone, and its evicted peer ends only now."""
    lost = derive(children(failed(0, 74, 100), training_pod(1, 5)))
    peer = pod(1, ended("trainer", 143, 5, 130), phase="Failed", conditions=(EVICTED,))

    found = derive(children(peer, training_pod(0, 140, created=110)), lost)

    assert (len(found.restart_history), found.restarts) == (1, 1)


def test_restarts_after_earlier_pods_were_collected_add_up() -> None:
    first = derive(children(failed(0, 74, 100), training_pod(1, 5)))
    second = derive(children(failed(1, 1, 300, created=110), training_pod(0, 115, created=110)), first)

    assert (second.restarts, [record.exit_code for record in second.restart_history]) == (2, [74, 1])


def test_a_disruption_is_on_record_and_not_counted() -> None:
    taken = condition("DisruptionTarget", reason="PreemptionByScheduler", message="preempted by urgent", seconds=100)
    old = pod(0, ended("trainer", 143, 10, 101), phase="Failed", conditions=(taken,))

    found = derive(children(old, training_pod(1, 5)))

    (record,) = found.restart_history
    assert (record.reason, record.counted, found.restarts, found.failure) == (Reason.DISRUPTED, False, 0, None)
    assert "preempted by urgent" in record.message


@pytest.mark.parametrize(("code", "backoff_limit"), [(65, 3), (1, 0)])
def test_a_failure_that_ends_the_job_is_no_restart(code: int, backoff_limit: int) -> None:
    found = derive(children(failed(0, code, 100), training_pod(1, 5)), runPolicy={"backoffLimit": backoff_limit})

    assert (found.restart_history, found.restarts) == ([], 0)
    assert found.failure is not None
    assert found.failure.exit_code == code


def test_pods_that_a_suspension_stopped_have_not_failed() -> None:
    stopped = [
        pod(index, ended("trainer", 143, 5, 100, message(Reason.TERMINATED, "stopped", 143, 99)), phase="Failed", deleting=True)
        for index in range(2)
    ]

    for held in (True, False):
        found = derive(children(*stopped, live=kubernetes_job(suspend=held)))
        assert (found.restart_history, found.restarts, found.failure) == ([], 0, None)


def test_the_record_is_bounded_and_what_fell_off_does_not_come_back() -> None:
    pods = [failed(0, 74, 100 * number + 50, created=100 * number) for number in range(RESTARTS_KEPT + 5)]
    found = NEW
    for number in range(1, len(pods) + 1):
        found = derive(children(*pods[:number]), found, runPolicy={"backoffLimit": 100})

    assert (found.restarts, len(found.restart_history)) == (RESTARTS_KEPT + 5, RESTARTS_KEPT)
    assert derive(children(*pods), found, runPolicy={"backoffLimit": 100}) == found


def test_an_operator_that_was_down_finds_every_attempt_that_left_pods() -> None:
    pods = [failed(index, 74, 100 * number + 50 + index, created=100 * number) for number in range(3) for index in range(2)]

    found = derive(children(*pods, training_pod(0, 400, created=310), training_pod(1, 400, created=310)))

    assert (found.restarts, [record.pod for record in found.restart_history]) == (3, ["face-0-0", "face-0-100", "face-0-200"])


def test_a_deadline_is_the_failure_of_the_job() -> None:
    over = kubernetes_job(condition("Failed", reason="DeadlineExceeded", seconds=400))
    pods = [pod(0, ended("trainer", 143, 5, 400), phase="Failed", deleting=True)]

    found = derive(children(*pods, live=over))

    assert found.failure is not None
    assert (found.failure.reason, found.failure.pod) == (Reason.DEADLINE_EXCEEDED, "")
    assert found.failure.time == START + timedelta(seconds=400)


def test_a_failed_stage_names_its_container() -> None:
    left = message(Reason.STORAGE_UNAVAILABLE, "no answer.", 69, 90, logTail="retrying")
    lost = pod(0, ended("stage", 69, 1, 90, left), waiting("trainer"), phase="Failed")

    found = derive(children(lost, pod(1, running("stage", 1), waiting("trainer"), phase="Pending")))

    assert found.failure is not None
    assert (found.failure.container, found.failure.rank, found.failure.log_tail) == ("stage", None, "retrying")
