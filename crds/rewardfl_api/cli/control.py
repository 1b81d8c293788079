"""`rewardfl suspend`, `resume` and `delete`: what steers a job."""

from typing import Annotated

import typer

from ..errors import ExitCode
from ..text import duration
from .app import JOBS, Context, JobName, Kubeconfig, Namespace, app, cluster, complain, stop


@app.command(rich_help_panel=JOBS)
def suspend(name: JobName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a job's pods and keep the job: it saves a checkpoint first, and goes on from there when it is resumed."""
    with cluster("suspend", kubeconfig, context, namespace) as client:
        job = client.get(name)
        if job.has_ended and not job.is_refused:
            complain("suspend", f"{name} has {job.phase.lower()} already; there is nothing to suspend")
            stop(ExitCode.FAILED)
        if job.is_suspended:
            typer.echo(f"{name} is suspended already")
            return
        client.suspend(job)
        kept = f"; its last checkpoint is that of step {job.status.checkpoint.step}" if job.status.checkpoint else ""
        typer.echo(f"{name} will be suspended{kept}")


@app.command(rich_help_panel=JOBS)
def resume(name: JobName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let a suspended job go on, from its last checkpoint."""
    with cluster("resume", kubeconfig, context, namespace) as client:
        job = client.get(name)
        if not job.is_suspended:
            waiting = f"; it waits in the queue {job.queue}" if job.phase == "Queued" and job.queue else ""
            typer.echo(f"{name} is not suspended{waiting}")
            return
        client.resume(job)
        saved = job.status.checkpoint
        typer.echo(f"{name} goes on from {f'step {saved.step}' if saved else 'the beginning: it has no checkpoint'}")


@app.command(rich_help_panel=JOBS)
def delete(
    name: JobName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete a job that still runs without asking.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a job with its pods. What it has written to the bucket stays."""
    with cluster("delete", kubeconfig, context, namespace) as client:
        job = client.get(name)
        if not (yes or job.has_ended):
            typer.confirm(f"{name} is {job.phase or 'new'} since {duration(job.age_seconds)}; delete it?", abort=True, err=True)
        client.delete(job)
        typer.echo(f"{name} is deleted; its results stay in {job.raw['spec'].get('output', 'the bucket')}")
