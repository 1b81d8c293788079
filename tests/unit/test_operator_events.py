"""Events tell of every change once."""

from datetime import timedelta

from rewardfl_api.errors import Reason
from rewardfl_api.status import RewardFLJobStatus
from rewardfl_operator import events, status
from rewardfl_operator.observed import Children
from rewardfl_operator.reading import Problem
from tests.unit.operator_objects import START, children, job, pod, waiting

NEW = RewardFLJobStatus()


def derive(seen: Children, previous: RewardFLJobStatus = NEW) -> RewardFLJobStatus:
    return status.derive(job(), seen, None, previous, START)


def test_a_new_phase_is_an_event_and_the_same_phase_is_none() -> None:
    first = derive(Children())

    assert [(event.kind, event.reason) for event in events.of_change(NEW, first)] == [("Normal", "Pending")]
    assert list(events.of_change(first, first)) == []


def test_a_trouble_is_a_warning_once() -> None:
    sick = derive(children(pod(0, waiting("stage", "ImagePullBackOff", "no such image"), phase="Pending")))

    assert ("Warning", Reason.IMAGE_PULL_FAILED) in [(event.kind, event.reason) for event in events.of_change(NEW, sick)]
    assert list(events.of_change(sick, sick)) == []


def test_a_failure_is_a_warning_that_names_the_reason() -> None:
    failed = status.refused(1, Reason.INVALID_TEMPLATE, "template.spec.hostPID=true: not allowed", NEW, START)

    event = next(events.of_change(NEW, failed))

    assert (event.kind, event.reason) == ("Warning", "Failed")
    assert event.note == "InvalidTemplate: template.spec.hostPID=true: not allowed"


def test_saying_the_same_again_makes_no_second_event() -> None:
    event = events.of_problem(Problem.MALFORMED)
    once, again = (events.manifest(event, job(), START + timedelta(seconds=seconds)) for seconds in (0, 60))
    other = events.manifest(events.of_problem(Problem.TOO_LONG), job(), START)

    assert once["metadata"]["name"] == again["metadata"]["name"] != other["metadata"]["name"]
    assert once["involvedObject"]["uid"] == job().metadata.uid


def test_long_notes_are_cut_to_what_the_api_server_takes() -> None:
    event = events.Event("Normal", "Pending", "ä" * 2000)

    assert len(events.manifest(event, job(), START)["message"].encode()) <= 1024


def test_a_change_of_phase_is_one_event_whatever_is_said_of_it() -> None:
    """An operator that was killed after the event and before the status says it again, in the words of what it sees then."""
    once, again = derive(Children()), derive(children(pod(0, waiting("stage", "ContainerCreating"), phase="Pending")))
    first, second = (next(events.of_change(NEW, found)) for found in (once, again))

    assert first.note != second.note
    assert name(first) == name(second)


def test_the_same_phase_at_another_time_is_another_event() -> None:
    before = [derive(Children()), derive(Children()).model_copy(update={"step": 3})]
    after = RewardFLJobStatus(phase="Training")

    first, second = (next(events.of_change(found, after)) for found in before)

    assert name(first) != name(second)


def name(event: events.Event) -> str:
    return str(events.manifest(event, job(), START)["metadata"]["name"])


def test_a_trainer_that_falls_silent_is_a_warning_once() -> None:
    silent = status.RewardFLJobStatus.model_validate(
        {
            "phase": "Training",
            "conditions": [
                {
                    "type": "ProgressStale",
                    "status": "True",
                    "reason": "TrainerSilent",
                    "message": "silent",
                    "lastTransitionTime": START,
                }
            ],
        }
    )

    assert ("Warning", "TrainerSilent", "silent") in [(e.kind, e.reason, e.note) for e in events.of_change(NEW, silent)]
    assert list(events.of_change(silent, silent)) == []
