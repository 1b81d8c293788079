"""The JSON log: one object a line, with the job that it is about."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rewardfl_operator import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Log as the operator does, and read what stands on standard error."""
    errors, root = io.StringIO(), logging.getLogger()
    before = {name: logging.getLogger(name).level for name in ("root", *logs.NOISY)}
    handlers = list(root.handlers)
    monkeypatch.setattr("sys.stderr", errors)
    logs.configure("json", "INFO")
    yield lambda: [json.loads(line) for line in errors.getvalue().splitlines()]
    root.handlers = handlers
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_of_a_jobs_turn_names_the_job_whoever_writes_it(lines: Lines) -> None:
    with logs.about("ml", "face"):
        logging.getLogger("rewardfl_operator.reconcile").info("phase %s", "Training")
        logging.getLogger("aiohttp.client").warning("slow")
    logging.getLogger("rewardfl_operator").info("outside")

    own, foreign, outside = lines()

    assert (own["level"], own["message"], own["namespace"], own["job"]) == ("INFO", "phase Training", "ml", "face")
    assert (foreign["logger"], foreign["namespace"], foreign["job"]) == ("aiohttp.client", "ml", "face")
    assert "job" not in outside
    assert own["time"].endswith("+00:00")


def test_turns_that_run_at_the_same_time_keep_their_own_jobs(lines: Lines) -> None:
    async def turn(job: str) -> None:
        with logs.about("ml", job):
            await asyncio.sleep(0)
            logging.getLogger("x").info(job)

    async def both() -> None:
        await asyncio.gather(turn("a"), turn("b"))

    asyncio.run(both())

    assert [line["job"] for line in lines()] == ["a", "b"]


def test_what_kopf_says_of_a_job_names_it(lines: Lines) -> None:
    reference = {"kind": "RewardFLJob", "name": "face", "namespace": "ml", "uid": "u"}
    logging.getLogger("kopf.objects").warning("it failed", extra={"k8s_ref": reference})

    (line,) = lines()

    assert (line["namespace"], line["job"], line["level"]) == ("ml", "face", "WARNING")


def test_an_exception_is_a_field_and_not_more_lines(lines: Lines) -> None:
    try:
        raise ValueError("several\nlines")
    except ValueError:
        logging.getLogger("x").exception("broken")

    (line,) = lines()

    assert line["message"] == "broken"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: several\nlines")
