"""`rewardfl submit`: checks manifests and creates their jobs."""

import copy
from typing import Annotated, Any

import typer

from ..errors import ExitCode
from .app import JOBS, Context, Kubeconfig, Namespace, app, cluster, complain, reporting, stop
from .validate import ManifestFiles, checked
from .watch import until_end

Raw = dict[str, Any]


@app.command(rich_help_panel=JOBS)
def submit(
    files: ManifestFiles,
    name: Annotated[str | None, typer.Option(help="Another name than the manifest's.")] = None,
    suspend: Annotated[bool, typer.Option("--suspend", help="Create it suspended; rewardfl resume starts it.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", "--watch", "-w", help="Watch it until it ends, as rewardfl watch does.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the API server check it, and create nothing.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check RewardFLJobs and create them: all of them, or none when one is wrong."""
    with reporting("submit"):
        manifests = _manifests(files, name, suspend=suspend)
    if wait and len(manifests) != 1:
        raise typer.BadParameter(f"--wait watches one job, and these are {len(manifests)}")
    with cluster("submit", kubeconfig, context, namespace) as client:
        from ..client.errors import ExistsError

        try:
            for manifest in manifests if len(manifests) > 1 else ():
                client.submit(manifest, dry_run=True)
            for manifest in manifests:
                created = client.submit(manifest, dry_run=dry_run)
                what = "would be created" if dry_run else "created, suspended" if created.is_suspended else "created"
                typer.echo(f"rewardfljob.rewardfl.io/{created.name} {what} in namespace {created.namespace}")
        except ExistsError as error:
            job = manifest["metadata"]["name"]
            complain("submit", f"{error}; delete it (rewardfl delete {job}), or give another name with --name")
            stop(ExitCode.FAILED)
        if wait and not dry_run:
            raise typer.Exit(until_end(client, created, "submit"))


def _manifests(files: list[str], name: str | None, *, suspend: bool) -> list[Raw]:
    """Read and check the manifests, with what the options change in them. Ends the command when something is wrong."""

    def changed(body: Raw) -> Raw:
        manifest = copy.deepcopy(body)
        if name is not None and isinstance(manifest.setdefault("metadata", {}), dict):
            manifest["metadata"]["name"] = name
        if suspend and isinstance(manifest.get("spec"), dict):
            manifest["spec"]["runPolicy"] = {**(manifest["spec"].get("runPolicy") or {}), "suspend": True}
        return manifest

    manifests = checked("submit", files, changed)
    if name is not None and len(manifests) != 1:
        raise typer.BadParameter(f"--name names one job, and these are {len(manifests)}")
    return manifests
