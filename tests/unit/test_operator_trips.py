"""What becomes of a job whose guard reports a broken rule: condition, reason, event, and a suspension that is asked for once."""

from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob
from rewardfl_api.progress import Progress
from rewardfl_api.status import RewardFLJobStatus
from rewardfl_operator import events, status, trips
from rewardfl_operator.names import TRIP_ANNOTATION
from rewardfl_operator.observed import Children
from tests.unit.operator_objects import (
    START,
    at,
    body,
    children,
    condition,
    find,
    kubernetes_job,
    progress,
    training_pod,
)

NEW = RewardFLJobStatus()
NOW = START + timedelta(seconds=1000)
TRIP = {"reason": "KlTooHigh", "step": 12, "time": at(100), "message": "The KL was 0.8, above guard.kl.max=0.5."}
STOP: dict[str, Any] = {"action": "Stop", "kl": {"max": 0.5}}
SUSPEND: dict[str, Any] = {"action": "Suspend", "kl": {"max": 0.5}}
RUNNING = children(training_pod(0, 50), training_pod(1, 50))
HANDLED = (START + timedelta(seconds=100)).isoformat()
BEST = {"bestCheckpoint": {"step": 10, "score": 0.61234, "uri": "s3://results/face/checkpoints/step-10"}}


def guarded(guard: dict[str, Any] | None, *, suspend: bool = False, handled: bool = False, created: float = 0) -> RewardFLJob:
    found = body(guard=guard, runPolicy={"suspend": suspend})
    found["metadata"]["creationTimestamp"] = at(created)
    found["metadata"]["annotations"] = {TRIP_ANNOTATION: HANDLED} if handled else {}
    return RewardFLJob.parse(found)


def reported(action: str = "Stop", seconds: float = 101, **fields: Any) -> Progress:
    return progress(seconds, step=12, total_steps=40, results=BEST, guard={**TRIP, "action": action}, **fields)


def derive(
    job: RewardFLJob, report: Progress | None, previous: RewardFLJobStatus = NEW, seen: Children = RUNNING
) -> RewardFLJobStatus:
    return status.derive(job, seen, report, previous, NOW)


def test_a_job_without_a_guard_says_nothing_of_one_whatever_is_reported() -> None:
    found = derive(guarded(None), reported())
    assert "GuardTripped" not in [item.type for item in found.conditions]
    assert trips.suspension(guarded(None), reported("Suspend"), NEW) is None


def test_a_guard_that_has_nothing_to_say_is_armed() -> None:
    armed = find(derive(guarded(STOP), progress(101)), "GuardTripped")
    assert (armed.status, armed.reason, armed.message) == ("False", Reason.GUARD_ARMED, "")


def test_a_stopped_job_has_succeeded_and_says_which_bound_what_is_best_and_what_to_try() -> None:
    done = children(live=kubernetes_job(condition("Complete"), succeeded=2, completionTime=at(500)))
    stopping = derive(guarded(STOP), reported(phase="Saving"))
    found = derive(guarded(STOP), reported(seconds=400, phase="Saving"), stopping, done)

    assert (stopping.phase, find(stopping, "GuardTripped").status) == ("Saving", "True")
    assert (found.phase, found.progress) == ("Succeeded", "12/40")
    for kind in ("Succeeded", "GuardTripped"):
        told = find(found, kind)
        assert (told.status, told.reason) == ("True", Reason.KL_TOO_HIGH)
        assert told.message.startswith(
            "The guard stopped the job after step 12 of 40. The KL was 0.8, above guard.kl.max=0.5. The best checkpoint is "
            "s3://results/face/checkpoints/step-10, with a held-out reward of 0.6123. Look at the report's videos"
        )
    assert find(found, "Running").reason == Reason.KL_TOO_HIGH


def test_the_one_event_of_a_broken_rule_is_a_warning_with_what_the_condition_says() -> None:
    before, after = derive(guarded(STOP), progress(60)), derive(guarded(STOP), reported())
    told = [event for event in events.of_change(before, after) if event.reason == Reason.KL_TOO_HIGH]
    assert [(event.kind, event.note) for event in told] == [("Warning", find(after, "GuardTripped").message)]
    again = derive(guarded(STOP), reported(seconds=105), after)
    assert [event for event in events.of_change(after, again) if event.reason == Reason.KL_TOO_HIGH] == []
    assert trips.newly_tripped(after, again) is None


def test_a_job_that_asks_for_it_is_suspended_by_one_write_that_says_for_what() -> None:
    job = guarded(SUSPEND)
    assert trips.suspension(job, reported("Suspend"), NEW) == {
        "metadata": {"uid": job.metadata.uid, "annotations": {TRIP_ANNOTATION: HANDLED}},
        "spec": {"runPolicy": {"suspend": True}},
    }
    assert trips.suspension(guarded(SUSPEND, handled=True), reported("Suspend"), NEW) is None
    assert trips.suspension(guarded(SUSPEND, suspend=True), reported("Suspend"), NEW) is not None, "it is on record all the same"


@pytest.mark.parametrize(
    ("job", "report"),
    [
        (guarded(SUSPEND), reported("Stop")),
        (guarded(STOP), reported("Suspend")),
        (guarded(SUSPEND), progress(101)),
        (guarded(SUSPEND), None),
        (guarded(SUSPEND, created=150), reported("Suspend")),
    ],
    ids=["the trainer stops", "the guard stops", "nothing is broken", "no report", "it was another job's"],
)
def test_nothing_else_suspends_a_job(job: RewardFLJob, report: Progress | None) -> None:
    assert trips.suspension(job, report, NEW) is None


def test_a_suspended_job_says_why_until_it_is_let_go_on_and_then_that_its_guard_is_armed_again() -> None:
    asks = derive(guarded(SUSPEND), reported("Suspend"))
    held = derive(
        guarded(SUSPEND, suspend=True, handled=True), reported("Suspend"), asks, children(live=kubernetes_job(suspend=True))
    )
    resumed = derive(guarded(SUSPEND, handled=True), reported("Suspend"), held, children())
    trains = derive(guarded(SUSPEND, handled=True), reported("Suspend", seconds=400), resumed)
    by_hand = derive(
        guarded(SUSPEND, suspend=True, handled=True), reported("Suspend"), trains, children(live=kubernetes_job(suspend=True))
    )

    assert "is suspending the job" in find(asks, "GuardTripped").message
    assert (held.phase, find(held, "Suspended").reason) == ("Suspended", Reason.KL_TOO_HIGH)
    assert find(held, "Suspended").message.startswith("The guard suspended the job after step 12 of 40. The KL was 0.8")
    assert find(held, "Suspended").message.endswith("Set runPolicy.suspend to false to go on.")
    for later in (resumed, trains, by_hand):
        assert find(later, "GuardTripped").status == "False"
        assert find(later, "GuardTripped").message.startswith("Let go on after step 12, where it was suspended: The KL was 0.8")
    assert find(by_hand, "Suspended").reason == Reason.SUSPENDED


def test_a_manifest_that_replaces_the_job_with_all_its_annotations_lets_it_go_on_for_good() -> None:
    held = derive(guarded(SUSPEND, suspend=True, handled=True), reported("Suspend"))
    replaced = derive(guarded(SUSPEND), reported("Suspend"), held, children())
    trains = derive(guarded(SUSPEND), reported("Suspend", seconds=400), replaced)
    for later in (replaced, trains):
        assert trips.suspension(guarded(SUSPEND), reported("Suspend"), later) is None
        assert find(later, "GuardTripped").status == "False"
    newer = reported("Suspend").model_copy(update={"guard": reported("Suspend").guard.copy_with(time=at(300))})  # type: ignore[union-attr]
    assert trips.suspension(guarded(SUSPEND), newer, trains) is not None, "the next broken rule counts"


def test_a_job_that_nobody_suspended_and_that_ended_by_itself_was_stopped() -> None:
    done = children(live=kubernetes_job(condition("Complete"), succeeded=2, completionTime=at(500)))
    found = derive(guarded(SUSPEND), reported("Suspend", seconds=400, phase="Saving"), NEW, done)
    assert find(found, "Succeeded").message.startswith("The guard stopped the job after step 12 of 40.")


def test_what_broke_a_rule_is_remembered_while_new_pods_have_said_nothing_yet() -> None:
    tripped = derive(guarded(STOP), reported())
    starting = derive(guarded(STOP), progress(150, phase="Staging"), tripped)
    trains = derive(guarded(STOP), progress(200, step=13, total_steps=40), starting)

    assert find(starting, "GuardTripped") == find(tripped, "GuardTripped")
    assert find(trains, "GuardTripped").status == "False", "its guard was changed, and it trains on"


def test_results_that_are_told_one_by_one_are_all_in_the_status() -> None:
    page = progress(100, step=1, total_steps=4, results={"report": "s3://results/face/report.html"})
    best = progress(110, step=2, total_steps=4, results=BEST)
    found = derive(guarded(STOP), best, derive(guarded(STOP), page))
    assert found.results is not None
    assert found.results.report == "s3://results/face/report.html"
    assert found.results.best_checkpoint is not None
    assert found.results.best_checkpoint.step == 10
