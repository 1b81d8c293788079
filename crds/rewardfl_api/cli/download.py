"""`rewardfl download`: fetches what a job has stored."""

from pathlib import Path
from typing import Annotated

import typer

from ..printable import printable
from ..text import plural, size
from .app import JOBS, Context, JobName, Kubeconfig, Namespace, app, cluster

Endpoint = Annotated[str | None, typer.Option(help="URL of the S3 service, where it is another from here than in the cluster.")]


@app.command(rich_help_panel=JOBS)
def download(
    name: JobName,
    patterns: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Names, with * and ?, or folders. Default: everything.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder to write to. Default: one of the job's name.")] = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Fetch weights, samples, metrics or the report of a job. What is there already is not fetched again."""
    with cluster("download", kubeconfig, context, namespace, endpoint) as client:
        folder = to or Path(name)
        files = client.download(name, folder, patterns=patterns or (), progress=lambda file: typer.echo(printable(str(file))))
        typer.echo(f"{plural(len(files), 'file')}, {size(sum(file.stat().st_size for file in files))}, in {folder}", err=True)
