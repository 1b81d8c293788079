"""Nothing in a progress document is believed unchecked."""

import json
from datetime import timedelta
from typing import Any

import pytest

from rewardfl_api.status import RewardFLJobStatus
from rewardfl_operator.reading import Problem, believable, read
from tests.unit.operator_objects import START

NEW = RewardFLJobStatus()


def document(seconds: float, **fields: Any) -> str:
    return json.dumps({"phase": "Training", "time": (START + timedelta(seconds=seconds)).isoformat(), **fields})


def problem(text: str, previous: RewardFLJobStatus = NEW, started: float = 0) -> Problem | None:
    return read(text, previous, START + timedelta(seconds=started), START + timedelta(seconds=100)).problem


def reached(step: int, seconds: float) -> RewardFLJobStatus:
    return RewardFLJobStatus(step=step, last_progress_time=START + timedelta(seconds=seconds))


def test_a_good_document_is_read_in_both_spellings() -> None:
    for name in ("totalSteps", "total_steps"):
        reading = read(document(10, step=3, **{name: 9}), NEW, START, START)

        assert reading.problem is None
        assert reading.progress is not None
        assert (reading.progress.step, reading.progress.total_steps) == (3, 9)


@pytest.mark.parametrize("text", [None, ""])
def test_no_report_is_no_problem(text: str | None) -> None:
    reading = read(text, NEW, None, START)

    assert (reading.progress, reading.problem) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "null",
        document(1, step=-1),
        document(1, step=10**12),
        document(1, unknown=1),
        document(1, phase="Succeeded"),
        document(1, metrics={"loss": float("nan")}),
        document(1, metrics={"loss": 1e300}),
        document(1, eta_seconds=float("inf")),
        document(1, staging={"bytes_done": -1}),
        document(1, staging={"bytes_per_second": float("nan")}),
        document(1, staging={"files_total": 2**31}),
        document(1, staging={"files": [{"name": "a", "state": "lost"}]}),
        document(1, staging={"files": [{"name": "x" * 97, "state": "done"}]}),
        document(1, staging={"files": [{"name": "a", "state": "done"}] * 21}),
        document(1).replace("2026", "99999"),
        document(1).replace("2026-01-01T12:00:01+00:00", "0001-01-01T00:00:00+14:00"),
        "[" * 16_000,
        '{"phase": "Training"}',
        "\ud800",
    ],
)
def test_malformed_documents_are_ignored(text: str) -> None:
    assert problem(text) is Problem.MALFORMED


def test_a_document_that_is_too_long_is_ignored() -> None:
    assert problem(document(1, message="x" * 20_000)) is Problem.TOO_LONG


def test_more_steps_than_there_are_is_ignored() -> None:
    assert problem(document(1, step=10, total_steps=9)) is Problem.BEYOND_TOTAL


@pytest.mark.parametrize(
    ("staging", "believed"),
    [
        ({"bytes_done": 9, "bytes_total": 9, "files_done": 2, "files_total": 2, "files_cached": 1, "bytes_cached": 9}, True),
        ({"bytes_done": 10, "bytes_total": 9}, False),
        ({"bytes_done": 8, "bytes_total": 9, "bytes_cached": 9}, False),
        ({"files_done": 3, "files_total": 2}, False),
        ({"files_done": 1, "files_total": 2, "files_cached": 2}, False),
        ({"files": [{"name": "a", "state": "fetching", "bytes_done": 2, "bytes_total": 1}]}, False),
    ],
)
def test_more_bytes_or_files_than_there_are_is_ignored(staging: dict[str, Any], believed: bool) -> None:
    assert problem(document(1, staging=staging)) is (None if believed else Problem.BEYOND_TOTAL)


def test_fewer_bytes_than_before_are_believed_since_a_damaged_file_is_fetched_again() -> None:
    previous = RewardFLJobStatus.model_validate(
        {"lastProgressTime": START.isoformat(), "staging": {"bytesDone": 9, "bytesTotal": 9}}
    )
    assert problem(document(1, phase="Staging", staging={"bytes_done": 5, "bytes_total": 9}), previous) is None


def test_a_file_name_cannot_speak_to_a_terminal() -> None:
    text = document(1, staging={"files": [{"name": "a\u001b[2Jb\u202e", "state": "done"}]})

    found = read(text, NEW, None, START + timedelta(seconds=100)).progress

    assert found is not None
    assert found.staging is not None
    assert found.staging.files[0].name == "ab"


def test_a_date_in_the_future_is_ignored_but_for_some_drift() -> None:
    assert problem(document(100 + 299)) is None
    assert problem(document(100 + 301)) is Problem.FUTURE


def test_steps_may_go_backwards_after_a_restart_and_only_then() -> None:
    back = document(90, step=5, total_steps=9)

    assert problem(back, reached(7, seconds=80), started=76) is None
    assert problem(back, reached(7, seconds=80), started=74) is Problem.BACKWARDS
    assert problem(back, reached(7, seconds=80), started=85) is None


def test_steps_that_go_backwards_without_a_restart_are_ignored() -> None:
    previous = RewardFLJobStatus(step=7, last_progress_time=START + timedelta(seconds=95))

    late = read(document(96, step=5), previous, START - timedelta(seconds=3600), START + timedelta(seconds=100))

    assert late.problem is Problem.BACKWARDS


def test_time_that_goes_backwards_is_ignored() -> None:
    assert problem(document(50, step=9), reached(3, seconds=60)) is Problem.BACKWARDS


def test_a_status_from_the_future_is_not_built_upon() -> None:
    later = START + timedelta(days=1)
    failure = {"time": later, "reason": "IoFailed"}
    damaged = RewardFLJobStatus.model_validate(
        {"phase": "Training", "last_progress_time": later, "failure": failure, "restart_history": [{**failure, "counted": True}]}
    )

    found = believable(damaged, START)

    assert (found.phase, found.last_progress_time, found.failure, found.restart_history) == ("Training", None, None, [])
    assert believable(damaged, later) == damaged
