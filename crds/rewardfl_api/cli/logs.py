"""`rewardfl logs`: what a job's pods write, all of them, one node's or one rank's."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from .app import JOBS, Context, JobName, Kubeconfig, Namespace, app, cluster, complain

if TYPE_CHECKING:
    from ..client.view import Job


class Container(StrEnum):
    """Containers of a pod."""

    STAGE = "stage"
    TRAINER = "trainer"


@app.command(rich_help_panel=JOBS)
def logs(
    name: JobName,
    rank: Annotated[int | None, typer.Option(help="Only what this rank wrote, counted over all nodes.", min=0)] = None,
    node: Annotated[int | None, typer.Option(help="Only of this node, counted from 0.", min=0)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines are written, until the job ends.")] = False,
    container: Annotated[
        Container | None, typer.Option("--container", "-c", help="Default: trainer; stage while models are fetched.")
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="Of the attempt before the last restart.")] = False,
    tail: Annotated[int | None, typer.Option(help="Only the last so many lines of each pod.", min=0)] = None,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Each line with its time.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the logs of a job, rank by rank. With several pods each line begins with its node."""
    if rank is not None and node is not None:
        raise typer.BadParameter("give --rank or --node, not both")
    if previous and follow:
        raise typer.BadParameter("an earlier attempt writes nothing more; leave --follow or --previous out")
    with cluster("logs", kubeconfig, context, namespace) as client:
        nodes = client.get(name).nodes
        tell = _WhenSuspended()
        lines = client.logs(
            name, rank=rank, node=node, follow=follow, container=container.value if container else None,
            previous=previous, tail=tail, timestamps=timestamps, progress=tell,
        )  # fmt: skip
        line = None
        for line in lines:
            typer.echo(f"[node {line.pod.node}] {line.text}" if node is None and rank is None and nodes > 1 else line.text)
        if line is None:
            complain("logs", "nothing has been written" + (f" by rank {rank}" if rank is not None else ""))


class _WhenSuspended:
    """Says why nothing more comes, each time that the job is suspended."""

    def __init__(self) -> None:
        self._was = False

    def __call__(self, job: "Job") -> None:
        if job.is_suspended and not self._was:
            complain("logs", f"{job.name} is suspended; this goes on when it does: rewardfl resume {job.name} -n {job.namespace}")
        self._was = job.is_suspended
