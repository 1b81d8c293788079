"""The figures are those of the last report, and the status says when they are not those of now."""

from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.progress import Progress
from rewardfl_api.status import RewardFLJobStatus
from rewardfl_operator import figures, status
from rewardfl_operator.observed import Children
from tests.unit.operator_objects import START, children, find, job, kubernetes_job, pod, progress, running, training_pod, waiting

NEW = RewardFLJobStatus()
NOW = START + timedelta(seconds=500)


def derive(seen: Children, report: Progress | None = None, previous: RewardFLJobStatus = NEW, **spec: Any) -> RewardFLJobStatus:
    return status.derive(job(**spec), seen, report, previous, NOW)


def staging_pod(index: int) -> dict[str, Any]:
    return pod(index, running("stage", 5), waiting("trainer"), phase="Pending")


def test_an_attempt_that_has_made_no_step_has_no_metrics_and_no_empty_ones() -> None:
    first = derive(
        children(training_pod(0, 50), training_pod(1, 50)), progress(100, step=3, total_steps=9, metrics={"reward": 0.5})
    )

    again = derive(children(training_pod(0, 50), training_pod(1, 50)), progress(110, step=2, total_steps=9), first)

    assert (first.reward, again.reward, again.metrics) == ("0.500", None, None)
    assert "metrics" not in again.to_kubernetes()
    assert (
        RewardFLJobStatus.model_validate({"metrics": {}, "results": {}}).to_kubernetes().keys() & {"metrics", "results"} == set()
    )


def test_staging_shows_bytes_and_their_share() -> None:
    report = progress(10, phase="Staging", staging={"bytes_done": 30, "bytes_total": 120, "bytes_per_second": 3})

    found = derive(children(staging_pod(0), staging_pod(1)), report)

    assert found.percent == 25
    assert found.staging is not None
    assert found.staging.bytes_done == 30


def test_staging_tells_when_it_will_be_done_at_its_present_rate() -> None:
    def eta(done: int, rate: float) -> str | None:
        report = progress(
            10, phase="Staging", staging={"bytes_done": done, "bytes_total": 120, "bytes_per_second": rate}, eta_seconds=5000
        )
        return derive(children(staging_pod(0), staging_pod(1)), report).eta

    assert (eta(30, 2.0), eta(30, 0.0), eta(120, 2.0)) == ("45s", None, None)


def stale(found: RewardFLJobStatus) -> tuple[str, str]:
    return find(found, "ProgressStale").status, find(found, "ProgressStale").reason


def test_figures_of_an_earlier_attempt_are_marked_until_the_trainer_reports_again() -> None:
    first = derive(children(training_pod(0, 50), training_pod(1, 50)), progress(100, step=12, total_steps=40))
    renewed = children(training_pod(0, 200, created=150), training_pod(1, 200, created=150))
    waiting_again = derive(renewed, progress(100, step=12, total_steps=40), first)
    reporting = derive(renewed, progress(210, step=11, total_steps=40), waiting_again)

    assert (stale(first), stale(waiting_again), stale(reporting)) == (
        ("False", Reason.PROGRESS_CURRENT),
        ("True", Reason.EARLIER_ATTEMPT),
        ("False", Reason.PROGRESS_CURRENT),
    )
    assert (waiting_again.progress, reporting.progress) == ("12/40", "11/40")


def test_figures_from_staging_are_not_stale_only_because_the_trainer_has_started() -> None:
    report = progress(40, phase="Staging", staging={"bytes_done": 1, "bytes_total": 1})
    staged = derive(children(staging_pod(0), staging_pod(1)), report)

    found = derive(children(training_pod(0, 50), training_pod(1, 50)), report, staged)

    assert stale(found) == ("False", Reason.PROGRESS_CURRENT)


@pytest.mark.parametrize(
    ("metrics", "step", "silence"), [({"seconds_per_step": 2}, 3, 600), ({"seconds_per_step": 90}, 3, 900), ({}, 0, 3600)]
)
def test_a_trainer_that_stops_reporting_is_noticed_after_ten_steps_time(
    metrics: dict[str, float], step: int, silence: float
) -> None:
    seen, report = (
        children(training_pod(0, 50), training_pod(1, 50)),
        progress(100, step=step, total_steps=40, metrics=metrics),
    )

    def after(seconds: float) -> RewardFLJobStatus:
        return status.derive(job(), seen, report, NEW, START + timedelta(seconds=100 + seconds))

    assert stale(after(silence)) == ("False", Reason.PROGRESS_CURRENT)
    assert stale(after(silence + 1)) == ("True", Reason.TRAINER_SILENT)
    assert status.look_again(after(10), seen, START + timedelta(seconds=110)) == silence - 10 + 1
    assert status.look_again(after(silence + 1), seen, START + timedelta(seconds=101 + silence)) is None


def test_nobody_looks_again_at_a_job_that_does_not_train() -> None:
    assert (
        status.look_again(derive(children(staging_pod(0)), progress(10, phase="Staging")), children(staging_pod(0)), NOW) is None
    )
    assert status.look_again(derive(Children()), Children(), NOW) is None


def test_figures_of_a_suspended_job_are_the_last_that_were_reported() -> None:
    first = derive(children(training_pod(0, 50), training_pod(1, 50)), progress(100, step=12, total_steps=40))

    held = derive(
        children(live=kubernetes_job(suspend=True)), progress(100, step=12, total_steps=40), first, runPolicy={"suspend": True}
    )

    assert stale(held) == ("True", Reason.EARLIER_ATTEMPT)
    assert "Pod 0 is not there" in find(held, "ProgressStale").message


@pytest.mark.parametrize(
    "fields",
    [
        {"phase": "Staging", "staging": {"bytes_done": 0, "bytes_total": 2**53, "bytes_per_second": 5e-324}},
        {"phase": "Staging", "staging": {"bytes_done": 2**53, "bytes_total": 1, "bytes_per_second": 1e12}},
        {"step": 1, "total_steps": 9, "metrics": {"seconds_per_step": 1e12, "reward": -1e12}, "eta_seconds": 1e9},
        {"step": 1, "total_steps": 9, "metrics": {"seconds_per_step": -1e12}},
    ],
)
def test_no_figure_that_a_pod_can_report_stops_its_job_from_being_told_about(fields: dict[str, Any]) -> None:
    seen = children(training_pod(0, 50), training_pod(1, 50)) if "step" in fields else children(staging_pod(0), staging_pod(1))

    found = derive(seen, progress(100, **fields))

    assert RewardFLJobStatus.model_validate(found.to_kubernetes()) == found
    wait = status.look_again(found, seen, NOW)
    assert wait is None or wait <= timedelta(days=1).total_seconds()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (45, "45s"), (750, "12m30s"), (3600, "1h"), (4335, "1h12m"), (183_600, "2d3h"), (86_400, "1d"), (3630, "1h")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert figures.duration(seconds) == text
