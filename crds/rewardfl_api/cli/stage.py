"""`rewardfl stage`: fetches what a job names to a folder of this machine, by the same code as the job's pods.

The bar or the lines go to standard error, where everything lies to standard output.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import RewardFLError
from ..progress import StagingProgress
from ..staged import summary
from ..text import duration, plural, size
from .app import FILES, app, complain, reporting, stop, trainer
from .validate import checked

INTERRUPTED = 130
DRAW_SECONDS, LINE_SECONDS = 0.25, 5.0

Snapshot = Callable[[], StagingProgress]


class Form(StrEnum):
    """Forms of the answer."""

    TEXT = "text"
    JSON = "json"


@app.command(rich_help_panel=FILES)
def stage(
    file: Annotated[str, typer.Option("--file", "-f", help="A RewardFLJob manifest; - is standard input.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to stage into; made if it is missing.")],
    output: Annotated[Form, typer.Option("--output", "-o", help="Form of the answer.")] = Form.TEXT,
) -> None:
    """Fetch dataset and models of a job to this machine, verified. What is there already is not fetched again."""
    with reporting("stage"):
        bodies = checked("stage", [file], lambda body: body)
    if len(bodies) != 1:
        raise typer.BadParameter(f"{file} holds {len(bodies)} RewardFLJobs; name a file with one")
    by_hand = trainer("stage", "rewardfl_trainer.staging.by_hand")
    config = _configuration(bodies[0])
    meter = trainer("stage", "rewardfl_trainer.staging.meter").Meter()
    began = time.monotonic()
    found = _shown(lambda: by_hand.stage_by_hand(config, to, meter), meter.snapshot)
    _tell(found, meter.snapshot(), to, time.monotonic() - began, output)


def _configuration(body: dict[str, Any]) -> Any:
    """Return what the operator would hand to the job's pods."""
    from ..job import RewardFLJob
    from ..trainer_config import TrainerConfig

    return TrainerConfig.from_job(RewardFLJob.parse(body))


def _shown(action: Callable[[], list[Any]], snapshot: Snapshot) -> list[Any]:
    """Do something in a thread and show how far it is; end the command where it fails, or at Ctrl-C."""
    answer: list[list[Any]] = []
    errors: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            answer.append(action())
        except BaseException as error:  # told by the main thread
            errors.append(error)
        finally:
            ended.set()

    threading.Thread(target=work, name="stage", daemon=True).start()
    try:
        (_draw if sys.stderr.isatty() else _print)(snapshot, ended)
    except KeyboardInterrupt:
        complain("stage", "stopped; the same command goes on from here")
        _leave(INTERRUPTED)
    for error in errors:
        try:
            with reporting("stage"):
                raise _in_resource_spelling(error)
        except typer.Exit as end:
            _leave(end.exit_code)
    return answer[0]


def _in_resource_spelling(error: BaseException) -> BaseException:
    """Name fields as the manifest does."""
    from ..validation import resource_spelling

    if not isinstance(error, RewardFLError):
        return error
    return RewardFLError(error.reason, resource_spelling(error.message), resource_spelling(error.hint), error.exit_code)


def _leave(code: int) -> None:
    """End the process at once: threads that wait for a server would hold it up, and every file is whole or not there."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _draw(snapshot: Snapshot, ended: threading.Event) -> None:
    """Draw a bar of all bytes, and one of each large file that is being fetched, until it has ended."""
    from rich.console import Console
    from rich.live import Live

    from .watch import staging_picture

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while not ended.wait(DRAW_SECONDS):
            live.update(staging_picture(snapshot()), refresh=True)


def _print(snapshot: Snapshot, ended: threading.Event) -> None:
    """Write a line now and then, when there is something new in it, until it has ended."""
    before = StagingProgress()
    while not ended.wait(LINE_SECONDS):
        now = snapshot()
        if (now.bytes_done, now.bytes_total) != (before.bytes_done, before.bytes_total):
            typer.echo(f"staging {summary(now)}", err=True)
        before = now


def _tell(found: list[Any], progress: StagingProgress, to: Path, seconds: float, form: Form) -> None:
    """Say where everything lies."""
    from ..validation import resource_spelling

    fields = [f"spec.{resource_spelling(staged.parameter)}" for staged in found]
    if form is Form.JSON:
        sources = [
            {"field": field, "source": staged.source, "paths": staged.paths} for field, staged in zip(fields, found, strict=True)
        ]
        counts = progress.model_dump(
            mode="json", by_alias=True, include={"bytes_done", "bytes_cached", "files_done", "files_cached"}
        )
        answer = {"folder": str(to), "seconds": round(seconds, 3), **counts, "sources": sources}
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for field, staged in zip(fields, found, strict=True):
        typer.echo(f"{field}={staged.source}")
        for path in staged.paths:
            typer.echo(f"  {path}")
    if not found:
        complain("stage", "the job names nothing that has to be staged")
        stop(0)
    what = f"{plural(progress.files_done, 'file')}, {size(progress.bytes_done)}"
    fetched = f"fetched {size(progress.bytes_done - progress.bytes_cached)} in {duration(seconds)}"
    cached = (
        f"; {progress.files_cached} of them ({size(progress.bytes_cached)}) were there already" if progress.files_cached else ""
    )
    typer.echo(f"{what}, in {to}: {fetched}{cached}")
