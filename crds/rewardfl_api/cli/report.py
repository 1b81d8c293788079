"""`rewardfl report`: one page of a run, or of several beside each other, from what they have stored."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..text import plural, size
from .app import FILES, Context, Kubeconfig, Namespace, app, cluster, complain, reporting, trainer


@app.command(rich_help_panel=FILES)
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Folder of results, file of a job, or name of a job in the cluster."),
    ] = None,
    files: Annotated[
        list[str] | None, typer.Option("--file", "-f", help="Folder of results, or file of a job. May be repeated.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path("report.html"),
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Write one HTML page of a run: curves, videos before and after, what stands out. Of several runs: what they differ in."""
    names = [*(files or []), *(runs or [])]
    if not names:
        raise typer.BadParameter("name a run: a folder of results, the file of a job (-f), or a job in the cluster")
    program = trainer("report", "rewardfl_trainer.report.command")
    places = [
        name if name in (files or []) or Path(name).exists() else _job(name, namespace, context, kubeconfig) for name in names
    ]
    with reporting("report"):
        for line in program.run(places, output):
            complain("report", line)
        what = plural(len(places), "run")
        typer.echo(f"wrote {output}: {what}, {size(output.stat().st_size)}")


def _job(name: str, namespace: str | None, context: str | None, kubeconfig: str | None) -> Any:
    """Return what the pods of a job in the cluster are told."""
    from ..job import RewardFLJob
    from ..trainer_config import TrainerConfig

    with cluster("report", kubeconfig, context, namespace) as client:
        return TrainerConfig.from_job(RewardFLJob.parse(client.get(name).raw))
