"""`rewardfl describe`: where a job stands and, when something is wrong, what happened and what to do next."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import typer

from .. import staged
from ..printable import one_line
from ..text import duration, plural, size
from .app import JOBS, Context, JobName, Kubeconfig, Namespace, app, cluster

if TYPE_CHECKING:
    from ..client.history import Event
    from ..client.view import Job

WIDTH = 14
LAST_EVENTS = 10


@app.command(rich_help_panel=JOBS)
def describe(name: JobName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Describe a job: what it does, why it failed or waits, what to do about it, its restarts and its last checkpoint."""
    with cluster("describe", kubeconfig, context, namespace) as client:
        from ..client.errors import ForbiddenError

        job = client.get(name)
        try:
            history = client.events(job)
        except ForbiddenError:
            history = None
        typer.echo("\n".join(lines(job, history)))


def lines(job: "Job", history: "list[Event] | None") -> Iterator[str]:
    """Yield the description, safe for a terminal, line by line; `history` None: the user may not read events."""
    return (one_line(line) for line in _lines(job, history))


def _lines(job: "Job", history: "list[Event] | None") -> Iterator[str]:
    yield _row("job", f"{job.namespace}/{job.name}, created {duration(job.age_seconds)} ago")
    yield _row("phase", f"{job.phase or 'none yet: the operator has not looked at it'}{_since(job)}")
    yield from _spec(job)
    yield from _progress(job)
    yield from _cause(job)
    yield from _failure(job)
    yield from _restarts(job)
    yield from _next_steps(job)
    yield from _events(history)


def _row(title: str, text: str) -> str:
    return (f"{title + ':':<{WIDTH}}{text}" if title else f"{'':<{WIDTH}}{text}").rstrip()


def _since(job: "Job") -> str:
    leading = job.leading
    return f" for {duration((datetime.now(UTC) - leading.last_transition_time).total_seconds())}" if leading is not None else ""


def _spec(job: "Job") -> Iterator[str]:
    spec = job.raw.get("spec") or {}
    processes = job.spec.processes_of_a_node if job.spec is not None else 0
    kind = "GPU" if job.spec is not None and job.spec.gpus_per_node else "CPU"
    each = f", {plural(processes, f'{kind} process', f'{kind} processes')} each" if processes else ""
    yield _row("nodes", f"{job.nodes}{each}")
    yield _row("dataset", str(spec.get("dataset", "")))
    yield _row("output", str(spec.get("output", "")))
    if job.queue:
        yield _row("queue", job.queue)


def _progress(job: "Job") -> Iterator[str]:
    status = job.status
    stale = job.condition("ProgressStale")
    if status.staging is not None and status.staging.bytes_total and job.phase == "Staging":
        yield _row("staged", staged.summary(status.staging))
        for place, text in enumerate(staged.table_of_files(status.staging)):
            yield _row("" if place else "files", text)
    elif status.staging is not None and status.staging.files_total:
        yield _row("staged", f"{size(status.staging.bytes_done)}, {staged.files(status.staging)}")
    if status.progress:
        left = f", {status.eta} left" if status.eta else ""
        yield _row("step", f"{status.progress} ({status.percent or 0}%){left}")
    if status.metrics is not None:
        shown = status.metrics.to_kubernetes()
        if shown:
            yield _row("metrics", ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
    if stale is not None and stale.status == "True":
        yield _row("", f"these figures are old: {stale.message or stale.reason}")
    if status.checkpoint is not None:
        yield _row("checkpoint", f"step {status.checkpoint.step}, {_ago(status.checkpoint.time)}: {status.checkpoint.uri}")
    if status.results is not None:
        places = status.results.model_copy(update={"best_checkpoint": None})
        for place, (name, uri) in enumerate(places.to_kubernetes().items()):
            yield _row("" if place else "results", f"{name} {uri}")
        if (best := status.results.best_checkpoint) is not None:
            yield _row("best", f"step {best.step}, held-out reward {best.score:.4g}: {best.uri}")
    yield from _guard(job)


def _guard(job: "Job") -> Iterator[str]:
    """Which rule of the guard is broken, unless that is the reason why the job stands where it stands."""
    found = job.condition("GuardTripped")
    if found is not None and found.status == "True" and found.reason != job.reason:
        yield _row("guard", f"{found.reason}: {found.message}")
    elif found is not None and found.status == "False":
        yield _row("guard", f"armed. {found.message}".strip())


def _cause(job: "Job") -> Iterator[str]:
    """Why it stands where it stands."""
    from ..client.view import explanation

    if not job.reason:
        return
    known = explanation(job.reason)
    yield _row("reason", job.reason)
    if job.message:
        yield _row("message", job.message)
    if known is not None and job.phase not in ("Training", "Succeeded"):
        yield _row("cause", known.cause)
        if known.remedy and known.remedy not in job.message:
            yield _row("remedy", known.remedy)


def _failure(job: "Job") -> Iterator[str]:
    """The last failure: of which rank, and the end of its log."""
    failure = job.status.failure
    if failure is None:
        return
    where = " of ".join(part for part in (failure.container and f"container {failure.container}", failure.pod) if part)
    rank = f"rank {failure.rank}, " if failure.rank is not None else ""
    code = f", exit code {failure.exit_code}" if failure.exit_code is not None else ""
    yield _row("last failure", f"{rank}{where or 'unknown pod'}{code}, {_ago(failure.time)}: {failure.reason}")
    if failure.message and failure.message not in job.message:
        yield _row("", failure.message)
    if failure.hint and failure.hint not in job.message:
        yield _row("", failure.hint)
    if failure.log_tail:
        yield _row("log", "the last lines of that rank:")
        yield from (f"  | {line}" for line in failure.log_tail.splitlines())


def _restarts(job: "Job") -> Iterator[str]:
    status = job.status
    limit = job.spec.run_policy.backoff_limit if job.spec is not None else None
    if status.restarts or status.restart_history:
        yield _row("restarts", f"{status.restarts}{f' of at most {limit}' if limit is not None else ''}")
    for restart in status.restart_history:
        counted = "" if restart.counted else " (not counted)"
        pod = f" ({restart.pod})" if restart.pod else ""
        yield f"  {_ago(restart.time)}: {restart.reason}{counted}{pod} {restart.message}".rstrip()


def _next_steps(job: "Job") -> Iterator[str]:
    """Commands that go on from here."""
    where = f"-n {job.namespace}"
    steps = {
        "Suspended": [f"rewardfl resume {job.name} {where}"],
        "Failed": [f"rewardfl logs {job.name} {where}", _again(job)],
        "Succeeded": [],
    }.get(job.phase, [f"rewardfl watch {job.name} {where}"])
    for place, step in enumerate(steps):
        yield _row("next" if place == 0 else "", step)


def _again(job: "Job") -> str:
    if job.is_refused:
        return f"kubectl edit rewardfljob {job.name} -n {job.namespace}   # it starts as soon as it is valid"
    kept = f"; it goes on from step {job.status.checkpoint.step}" if job.status.checkpoint is not None else ""
    return f"mend the cause, rewardfl delete {job.name} -n {job.namespace}, and submit it again{kept}"


def _events(history: "list[Event] | None") -> Iterator[str]:
    if history is None:
        yield _row("events", "you may not read them here")
    elif history:
        yield _row("events", "")
    for event in (history or [])[-LAST_EVENTS:]:
        times = f" x{event.count}" if event.count > 1 else ""
        yield f"  {_ago(event.time)}: {event.kind} {event.reason}{times}: {event.message}"


def _ago(time: datetime | None) -> str:
    return f"{duration(max((datetime.now(UTC) - time).total_seconds(), 0))} ago" if time is not None else "some time ago"
