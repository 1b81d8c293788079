"""What happens to one pod of a gang happens to all of it."""

from datetime import timedelta

from rewardfl_api.progress import Progress
from rewardfl_operator.gang import BROKEN_GANG_GRACE_SECONDS, Eviction, evictions
from tests.unit.operator_objects import START, at, children, condition, ended, kubernetes_job, pod, running, training_pod, waiting

TAKEN = condition("DisruptionTarget", reason="EvictionByEvictionAPI", seconds=100)
FAILED = pod(1, ended("stage", 0, 0, 10), ended("trainer", 1, 10, 100), phase="Failed")


def test_a_whole_gang_is_left_alone() -> None:
    assert evictions(children(training_pod(0, 10), training_pod(1, 10))) == ()


def test_survivors_of_a_dead_rank_are_evicted_quickly() -> None:
    assert evictions(children(training_pod(0, 10), FAILED)) == (Eviction("face-0-0", BROKEN_GANG_GRACE_SECONDS),)


def test_a_rank_that_dies_in_the_second_in_which_all_started_is_a_loss_too() -> None:
    died_at_once = pod(1, ended("stage", 0, 0, 10), ended("trainer", 1, 10, 10), phase="Failed")

    assert evictions(children(training_pod(0, 10), died_at_once)) == (Eviction("face-0-0", BROKEN_GANG_GRACE_SECONDS),)


def test_when_one_pod_is_taken_away_all_get_the_time_to_save() -> None:
    leaving = pod(1, ended("stage", 0, 0, 10), running("trainer", 10), deleting=True, conditions=(TAKEN,))

    assert evictions(children(training_pod(0, 10), leaving)) == (Eviction("face-0-0", None),)


def test_the_next_attempt_is_left_alone() -> None:
    again = training_pod(0, 120, created=105), training_pod(1, 130, created=105)

    assert evictions(children(FAILED, *again)) == ()


def test_a_pod_that_still_stages_has_no_peers_to_lose() -> None:
    staging = pod(0, waiting("stage"), waiting("trainer"), phase="Pending")
    failed_to_stage = pod(1, ended("stage", 69, 0, 100), waiting("trainer"), phase="Failed")

    assert evictions(children(staging, FAILED)) == ()
    assert evictions(children(training_pod(0, 10), failed_to_stage)) == ()


def test_nothing_is_evicted_when_the_job_ends_anyway() -> None:
    final = pod(1, ended("stage", 0, 0, 10), ended("trainer", 65, 10, 100), phase="Failed")

    assert evictions(children(training_pod(0, 10), final)) == ()
    for over in (condition("Failed"), condition("FailureTarget"), condition("Complete")):
        assert evictions(children(training_pod(0, 10), FAILED, live=kubernetes_job(over))) == ()
    assert evictions(children(training_pod(0, 10), FAILED, live=kubernetes_job(suspend=True))) == ()


def test_pods_that_have_ended_well_are_no_loss() -> None:
    done = pod(1, ended("stage", 0, 0, 10), ended("trainer", 0, 10, 100), phase="Succeeded")

    assert evictions(children(training_pod(0, 10), done)) == ()


def test_an_evicted_pod_is_not_evicted_again() -> None:
    evicted = {**training_pod(0, 10)}
    evicted["metadata"] = {**evicted["metadata"], "deletionTimestamp": at(101)}

    assert evictions(children(evicted, FAILED)) == ()


def report(seconds: float, phase: str = "Training") -> Progress:
    return Progress.model_validate({"phase": phase, "time": START + timedelta(seconds=seconds)})


def test_a_pod_whose_peer_was_replaced_while_nobody_looked_is_evicted() -> None:
    replaced = pod(1, waiting("stage"), waiting("trainer"), phase="Pending", created=100)

    assert evictions(children(training_pod(0, 10), replaced), report(50)) == (Eviction("face-0-0", BROKEN_GANG_GRACE_SECONDS),)
    again = FAILED, training_pod(0, 120, created=110), pod(1, running("stage", 205), phase="Pending", created=200)
    assert evictions(children(*again), report(150)) == (Eviction("face-0-110", BROKEN_GANG_GRACE_SECONDS),)


def test_a_pod_that_waits_for_a_late_peer_is_left_alone() -> None:
    late = pod(1, waiting("stage"), waiting("trainer"), phase="Pending", created=100)

    assert evictions(children(training_pod(0, 10), late)) == ()
    assert evictions(children(training_pod(0, 10), late), report(50, "Staging")) == ()
    assert evictions(children(training_pod(0, 105, created=90), late), report(50)) == (), "a report of the attempt before"
    joined = training_pod(1, 110, created=100)
    assert evictions(children(training_pod(0, 10), joined), report(120, "Preparing")) == (), "they have met"
