"""What becomes of the Kubernetes Jobs of gangs when the operator is uninstalled."""

from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.job import RewardFLJob
from rewardfl_operator import leaving, resources, upkeep
from rewardfl_operator.leaving import Lower, Released, Remove, Wait
from rewardfl_operator.settings import OperatorSettings
from tests.unit.operator_objects import START, condition, ended, job, pod, running, training_pod

Raw = dict[str, Any]
UNLIMITED = 2**31 - 1
MINUTE = timedelta(minutes=1)
EVICTED = condition("DisruptionTarget")


def made(of: RewardFLJob | None = None, suspend: bool = False, **status: Any) -> Raw:
    """The Kubernetes Job of a gang, with what Kubernetes takes for `backoffLimit`."""
    live = {**resources.indexed_job(of or job(), OperatorSettings()), "status": status}
    live["metadata"]["resourceVersion"] = "5"
    live["spec"] = {"backoffLimit": UNLIMITED, **live["spec"], "suspend": suspend}
    return live


def held(raw: Raw) -> Raw:
    """A pod that the Job controller has not let go of."""
    raw["metadata"]["finalizers"] = [leaving.TRACKING_FINALIZER]
    return raw


def training(index: int) -> Raw:
    return held(training_pod(index, 10))


def failed(index: int, *conditions: Raw) -> Raw:
    return held(pod(index, ended("trainer", 1, 10, 100), phase="Failed", conditions=conditions))


def test_the_next_failure_of_a_gang_ends_it() -> None:
    both = [training(0), training(1)]

    assert leaving.decide(made(), [], patient=True) == Lower(0, suffices=True)
    assert leaving.decide(made(), both, patient=True) == Lower(0, suffices=True)
    assert leaving.decide(made(failed=3), both, patient=True) == Lower(3, suffices=True)
    assert leaving.decide(made(suspend=True, failed=3), [], patient=True) == Lower(3, suffices=True)


def test_failures_that_are_not_in_the_count_yet_are_counted_once() -> None:
    uid = failed(0)["metadata"]["uid"]
    live = made(suspend=True, failed=3, uncountedTerminatedPods={"failed": [uid, "of another pod"]})

    assert leaving.decide(live, [training(1)], patient=True) == Lower(5, suffices=True)
    assert leaving.decide(live, [failed(0), failed(1)], patient=True) == Lower(5, suffices=True), "one of 3 + 3 too few"


def test_what_ends_by_itself_or_has_ended_is_left_alone() -> None:
    single = made(job(nodes=1))
    assert single["spec"]["backoffLimit"] == 3
    assert leaving.decide(single, [training(0)], patient=False) is None
    for kind in ("Complete", "Failed", "FailureTarget"):
        assert leaving.decide(made(conditions=[condition(kind)]), [failed(0)], patient=False) is None, kind
    being_deleted = made()
    being_deleted["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    assert leaving.decide(being_deleted, [failed(0)], patient=False) is None


def test_a_limit_that_is_low_enough_is_left_alone() -> None:
    live = made(failed=3)
    live["spec"]["backoffLimit"] = 3

    assert leaving.decide(live, [training(0), training(1)], patient=True) is None


@pytest.mark.parametrize(
    "lost",
    [
        failed(1),
        failed(1, EVICTED),
        held(pod(1, running("trainer", 10), conditions=(EVICTED,))),
        held(pod(1, running("trainer", 10), deleting=True)),
    ],
    ids=("failed", "evicted and ended", "evicted", "deleted by hand"),
)
def test_a_gang_that_starts_again_is_waited_for(lost: Raw) -> None:
    assert leaving.decide(made(), [training(0), lost], patient=True) == Wait()


def test_failed_pods_that_the_job_controller_has_let_go_of_are_no_concern() -> None:
    replaced = failed(1)
    replaced["metadata"]["finalizers"] = []

    assert leaving.decide(made(failed=1), [training(0), replaced, training(1)], patient=True) == Lower(1, suffices=True)


def test_a_gang_that_cannot_be_waited_for_ends_now_if_it_has_ever_failed() -> None:
    evicted = [failed(0, EVICTED), failed(1, EVICTED)]

    assert leaving.decide(made(), [training(0), failed(1)], patient=False) == Lower(0, suffices=True)
    assert leaving.decide(made(failed=3), [failed(0), failed(1)], patient=False) == Lower(4, suffices=True)
    assert leaving.decide(made(failed=3), evicted, patient=False) == Lower(2, suffices=True)
    assert leaving.decide(made(), [training(0), failed(1, EVICTED)], patient=False) == Lower(0, suffices=True)
    assert leaving.decide(made(), evicted, patient=False) == Lower(0, suffices=False), "nothing that counts has happened"


def test_a_suspended_job_that_holds_a_failed_pod_is_made_anew_later_unless_somebody_else_has_suspended_it() -> None:
    asked = job(runPolicy={"suspend": True})

    assert leaving.decide(made(asked, suspend=True), [failed(0)], patient=True) == Remove()
    assert leaving.decide(made(asked, suspend=True), [failed(0, EVICTED)], patient=True) == Remove()
    assert leaving.decide(made(suspend=True), [failed(0)], patient=True) == Lower(0, suffices=True)


def after(live: Raw, patch: Raw | None) -> Raw:
    """The Job after a merge patch."""
    assert patch is not None
    annotations = {**live["metadata"]["annotations"], **patch["metadata"]["annotations"]}
    kept = {key: value for key, value in annotations.items() if value is not None}
    return {**live, "metadata": {**live["metadata"], "annotations": kept}, "spec": {**live["spec"], **patch.get("spec", {})}}


def test_what_was_released_is_given_back_by_an_operator_that_came_later() -> None:
    live = made()
    released = after(live, leaving.released(live, Lower(0, suffices=True), START))

    assert released["spec"]["backoffLimit"] == 0
    assert upkeep.of_running(job(), released) is None
    assert leaving.given_back(released, START) is None, "the operator that is being uninstalled"
    action = upkeep.of_running(job(), released, START + MINUTE)
    assert isinstance(action, upkeep.Patch)
    assert after(released, action.body) == live
    assert upkeep.of_running(job(), live, START + MINUTE) is None


def test_a_release_fits_only_the_job_that_was_looked_at() -> None:
    assert leaving.released(made(), Lower(0, suffices=True), START)["metadata"]["resourceVersion"] == "5"


def test_a_limit_that_somebody_has_set_since_is_not_taken_back() -> None:
    live = made()
    live["spec"]["backoffLimit"] = 50
    released = after(live, leaving.released(live, Lower(2, suffices=True), START))
    assert after(released, leaving.given_back(released, START + MINUTE))["spec"]["backoffLimit"] == 50

    released["spec"]["backoffLimit"] = 7
    assert leaving.given_back(released, START + MINUTE) == {"metadata": {"annotations": {"rewardfl.io/released": None}}}


WITHOUT_ZONE = '{"limit": 0, "before": 5, "time": "2026-01-01T12:00:00"}'


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"limit": "x"}', WITHOUT_ZONE])
def test_an_annotation_of_another_make_is_not_heeded(text: str) -> None:
    live = made()
    live["metadata"]["annotations"]["rewardfl.io/released"] = text

    assert Released.of(live) is None
    assert leaving.given_back(live, START + MINUTE) is None


def test_an_operator_that_works_on_has_not_been_uninstalled() -> None:
    released = after(made(), leaving.released(made(), Lower(0, suffices=True), START))
    an_hour_before = START - 60 * MINUTE

    for later, is_given_back in ((MINUTE, False), (11 * MINUTE, True)):
        before = leaving.released_before(an_hour_before, START + later)
        assert (leaving.given_back(released, before) is not None) == is_given_back
    assert leaving.given_back(released, leaving.released_before(START + MINUTE, START + MINUTE)) is not None
