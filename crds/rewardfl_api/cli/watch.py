"""`rewardfl watch`: a job as it goes on, drawn anew at a terminal and as one line a change everywhere else, until it ends."""

import sys
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from .. import staged
from ..client.progress import line, metrics
from ..errors import ExitCode
from ..printable import one_line
from ..progress import StagingProgress
from ..text import duration, size
from .app import JOBS, Context, JobName, Kubeconfig, Namespace, app, cluster, complain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..client.sync import Client
    from ..client.view import Job

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_COUNT = 48
BAR_WIDTH = 50
BARS = 8
"""Bars of files at once: as many as are fetched at once."""


@app.command(rich_help_panel=JOBS)
def watch(name: JobName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Watch a job until it ends. Exit code 0: it succeeded; 1: it failed. Ctrl-C leaves the job alone."""
    with cluster("watch", kubeconfig, context, namespace) as client:
        raise typer.Exit(until_end(client, name, "watch"))


def until_end(client: "Client", job: "Job | str", command: str) -> int:
    """Show a job until it has ended, and return the exit code.

    Raises:
        ClientError: there is no such job, it was deleted, or the cluster cannot be asked.
    """
    changes = client.watch(job)
    from ..client.errors import JobFailedError

    last = _draw(changes) if sys.stdout.isatty() else _print(changes)
    if last.phase == "Succeeded":
        results = last.status.results
        where = (results.lora if results is not None else None) or last.raw["spec"].get("output", "")
        typer.echo(f"{last.name} succeeded after {_ran(last)}: {one_line(where)}")
        return ExitCode.DONE
    complain(command, str(JobFailedError(last, f"see rewardfl describe {last.name} -n {last.namespace}")))
    return ExitCode.FAILED


def _ran(job: "Job") -> str:
    status = job.status
    if status.start_time is None or status.completion_time is None:
        return duration(job.age_seconds)
    return duration((status.completion_time - status.start_time).total_seconds())


def _print(changes: "Iterator[Job]") -> "Job":
    """Write a line whenever there is something new in it, and return the last state."""
    before = ""
    for job in changes:
        text = line(job)
        if text != before:
            typer.echo(f"{datetime.now():%H:%M:%S} {text}")
            sys.stdout.flush()
        before, last = text, job
    return last


def _draw(changes: "Iterator[Job]") -> "Job":
    """Draw the job at a terminal, and return the last state."""
    from rich.console import Console
    from rich.live import Live

    rewards: deque[float] = deque(maxlen=SPARK_COUNT)
    step = -1
    with Live(console=Console(), auto_refresh=False) as live:
        for job in changes:
            metrics = job.status.metrics
            if metrics is not None and metrics.reward is not None and job.status.step != step:
                step = job.status.step or 0
                rewards.append(metrics.reward)
            live.update(picture(job, list(rewards)), refresh=True)
            last = job
    return last


def picture(job: "Job", rewards: list[float]) -> "RenderableType":
    """Return what is drawn of a job: where it stands, how far it is, its metrics and the course of its reward."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    status = job.status
    colour = {"Succeeded": "green", "Failed": "red", "Training": "cyan"}.get(job.phase, "yellow")
    head = Text.assemble((f"{job.namespace}/{job.name}", "bold"), "  ", (job.phase or "new", f"bold {colour}"))
    if job.reason not in ("", job.phase):
        head.append(f"  {job.reason}", style="dim")
    rows: list[RenderableType] = [head]
    if job.phase == "Staging" and status.staging is not None:
        rows.append(staging_picture(status.staging))
    elif status.percent is not None:
        bar = Table.grid(padding=(0, 2))
        eta = f"{status.eta} left" if status.eta else ""
        text = f"{status.progress or ''}  {status.percent}%"
        bar.add_row(ProgressBar(total=100, completed=status.percent, width=BAR_WIDTH), text, eta)
        rows.append(bar)
    if found := metrics(job):
        rows.append(Text("  ".join(f"{name} {value:.4g}" for name, value in found)))
    if len(rewards) > 1:
        rows.append(Text(f"reward {sparks(rewards)}  {min(rewards):.3f} to {max(rewards):.3f}", style="dim"))
    if status.checkpoint is not None:
        rows.append(Text(f"checkpoint of step {status.checkpoint.step}; restarts {status.restarts}", style="dim"))
    if job.message:
        rows.append(Text(job.message))
    return Group(*rows)


def staging_picture(staging: StagingProgress) -> "RenderableType":
    """Return a bar of all bytes, and below it one of each large file that is being fetched."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bars = Table.grid(padding=(0, 2))
    all_of_it = ProgressBar(total=max(staging.bytes_total, 1), completed=staging.bytes_done, width=BAR_WIDTH)
    bars.add_row(all_of_it, Text(staged.summary(staging)))
    for file in staged.under_way(staging)[:BARS]:
        bar = ProgressBar(total=max(file.bytes_total, 1), completed=file.bytes_done, width=BAR_WIDTH)
        bars.add_row(bar, Text(f"{size(file.bytes_total)}  {staged.short_name(file)}", style="dim"))
    return bars


def sparks(values: list[float]) -> str:
    """Return a row of bars, the lowest value the shortest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((value - low) / span * (len(SPARKS) - 1))] for value in values)
