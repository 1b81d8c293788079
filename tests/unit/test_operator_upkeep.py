"""What is done about a Kubernetes Job that exists: edits, suspension, queues."""

from typing import Any

import pytest

from rewardfl_api.job import RewardFLJob
from rewardfl_operator import resources, upkeep
from rewardfl_operator.settings import OperatorSettings
from rewardfl_operator.upkeep import Patch, Remove
from tests.unit.operator_objects import QUEUE_LABELS, condition, job

Raw = dict[str, Any]
QUEUE, PRIORITY = QUEUE_LABELS
SUSPENDED = {"runPolicy": {"suspend": True}}


def made(of: RewardFLJob, suspend: bool | None = None, **status: Any) -> Raw:
    """The Kubernetes Job as it was made for a job, with what somebody has done to its `suspend` since."""
    live = {**resources.indexed_job(of, OperatorSettings()), "status": status}
    if suspend is not None:
        live["spec"]["suspend"] = suspend
    return live


def edited(labels: dict[str, str] | None = None, **spec: Any) -> RewardFLJob:
    """The job after its user has changed its spec."""
    changed = job(labels, **spec)
    return changed.model_copy(update={"metadata": changed.metadata.model_copy(update={"generation": 4})})


def body(action: Remove | Patch | None) -> Raw:
    assert isinstance(action, Patch)
    return action.body


def patched(live: Raw, action: Remove | Patch | None) -> Raw:
    """The Job after the patch."""
    patch = body(action)
    metadata = {**live["metadata"]}
    for part, values in patch.get("metadata", {}).items():
        metadata[part] = {**metadata.get(part, {}), **values}
    return {**live, "metadata": metadata, "spec": {**live["spec"], **patch.get("spec", {})}}


def test_nothing_is_done_about_a_job_that_is_as_it_should_be() -> None:
    for labels in (None, QUEUE_LABELS):
        assert upkeep.of_running(job(labels), made(job(labels))) is None


def test_suspending_and_resuming_are_each_one_patch_of_the_live_job() -> None:
    live, held = made(job()), edited(**SUSPENDED)

    suspend = upkeep.of_running(held, live)
    assert body(suspend)["spec"] == {"suspend": True}
    live = patched(live, suspend)
    assert upkeep.of_running(held, live) is None

    resume = upkeep.of_running(edited(), live)
    assert body(resume)["spec"] == {"suspend": False}
    assert upkeep.of_running(edited(), patched(live, resume)) is None


def test_what_others_do_to_suspend_is_left_alone() -> None:
    assert upkeep.of_running(job(), made(job(), suspend=True)) is None, "somebody has suspended the Job by hand"
    assert upkeep.of_running(job(QUEUE_LABELS), made(job(QUEUE_LABELS), suspend=False)) is None, "Kueue has admitted it"
    assert upkeep.of_running(job(QUEUE_LABELS), made(job(QUEUE_LABELS), suspend=True)) is None, "Kueue has preempted it"


def test_while_a_job_is_suspended_no_queue_can_let_it_run() -> None:
    for suspend in (False, True):
        assert isinstance(upkeep.of_running(edited(QUEUE_LABELS, **SUSPENDED), made(job(QUEUE_LABELS), suspend)), Remove)
    assert isinstance(upkeep.of_running(edited(QUEUE_LABELS, **SUSPENDED), made(job())), Remove), "it got its label just now"


def test_who_lets_a_suspended_job_go_on_against_what_was_asked_is_not_fought() -> None:
    live = patched(made(job()), upkeep.of_running(edited(**SUSPENDED), made(job())))
    live["spec"]["suspend"] = False

    assert isinstance(upkeep.of_running(edited(**SUSPENDED), live), Remove)


@pytest.mark.parametrize(
    "change", [{"nodes": 3}, {"training": {"seed": 1}}, {"image": "other:1"}, {"runPolicy": {"backoffLimit": 9}}], ids=str
)
def test_a_job_is_made_anew_after_an_edit_however_quickly_it_was_resumed(change: Raw) -> None:
    assert isinstance(upkeep.of_running(edited(**change), made(job())), Remove)
    assert isinstance(upkeep.of_running(edited(**change), made(job(), suspend=True)), Remove)


def test_a_new_version_of_the_operator_stops_no_running_job() -> None:
    live = made(job())
    live["metadata"]["annotations"]["rewardfl.io/shape"] = "of another version"

    assert upkeep.of_running(job(), live) is None


def test_a_job_that_has_ended_is_not_removed_before_its_result_is_on_record() -> None:
    for kind in ("Complete", "Failed", "FailureTarget"):
        live = made(job(), conditions=[condition(kind)])
        assert upkeep.of_running(edited(nodes=3), live) is None, kind
        assert upkeep.of_running(edited(**SUSPENDED), live) is None, kind


def test_a_deadline_may_be_set_changed_and_removed() -> None:
    live = made(job())
    assert body(upkeep.of_running(edited(runPolicy={"activeDeadlineSeconds": 60}), live)) == {
        "spec": {"activeDeadlineSeconds": 60}
    }
    live["spec"]["activeDeadlineSeconds"] = 60
    assert body(upkeep.of_running(edited(), live)) == {"spec": {"activeDeadlineSeconds": None}}


def test_the_ttl_is_set_once_the_result_is_on_record() -> None:
    brief = job(runPolicy={"ttlSecondsAfterFinished": 0})
    live = made(brief)

    assert "ttlSecondsAfterFinished" not in live["spec"]
    assert upkeep.of_running(brief, live) is None
    assert body(upkeep.of_finished(brief, live)) == {"spec": {"ttlSecondsAfterFinished": 0}}
    assert upkeep.of_finished(job(), live) is None


def test_a_waiting_job_moves_to_another_queue_and_a_running_one_does_not() -> None:
    moved = {**QUEUE_LABELS, QUEUE: "other"}

    patch = body(upkeep.of_running(job(moved), made(job(QUEUE_LABELS))))
    assert patch["metadata"]["labels"] == {QUEUE: "other"}
    assert "spec" not in patch
    assert upkeep.of_running(job(moved), made(job(QUEUE_LABELS), suspend=False)) is None


def test_the_priority_may_change_at_any_time_and_be_added_while_the_job_waits() -> None:
    raised, without = {**QUEUE_LABELS, PRIORITY: "urgent"}, {QUEUE: "gpus"}

    for suspend in (False, True):
        patch = body(upkeep.of_running(job(raised), made(job(QUEUE_LABELS), suspend)))
        assert patch["metadata"]["labels"] == {PRIORITY: "urgent"}
    assert body(upkeep.of_running(job(QUEUE_LABELS), made(job(without))))["metadata"]["labels"] == {PRIORITY: "high"}
    assert upkeep.of_running(job(QUEUE_LABELS), made(job(without), suspend=False)) is None


def test_a_waiting_job_that_leaves_its_queue_is_made_anew_and_a_running_one_goes_on() -> None:
    assert isinstance(upkeep.of_running(job(), made(job(QUEUE_LABELS))), Remove)
    assert upkeep.of_running(job(), made(job(QUEUE_LABELS), suspend=False)) is None


def test_a_queue_that_a_running_job_gets_counts_from_its_next_start() -> None:
    assert upkeep.of_running(job(QUEUE_LABELS), made(job())) is None


def test_a_queue_that_kueue_itself_has_chosen_is_kept() -> None:
    live = made(job())
    live["metadata"]["labels"][QUEUE] = "default"

    for suspend in (False, True):
        live["spec"]["suspend"] = suspend
        assert upkeep.of_running(job(), live) is None


def test_a_job_of_an_earlier_version_is_taken_as_it_is() -> None:
    for labels, suspend in ((None, False), (QUEUE_LABELS, True), (QUEUE_LABELS, False)):
        live = made(job(labels), suspend)
        for annotation in ("asked", "generation"):
            del live["metadata"]["annotations"][f"rewardfl.io/{annotation}"]
        assert upkeep.of_running(job(labels), live) is None
    live = made(job(), suspend=True)
    del live["metadata"]["annotations"]["rewardfl.io/asked"]
    assert body(upkeep.of_running(job(), live))["spec"] == {"suspend": False}
