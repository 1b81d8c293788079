"""`rewardfl list`: the jobs of a namespace, or of all, as a table, as JSON or YAML, or by name."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from ..text import duration, table
from .app import JOBS, Context, Kubeconfig, Namespace, app, cluster, complain

if TYPE_CHECKING:
    from ..client.view import Job

COLUMNS = ("NAME", "PHASE", "STEP", "PROGRESS", "REWARD", "ETA", "AGE")
WIDE_COLUMNS = ("NODES", "RESTARTS", "CHECKPOINT", "QUEUE", "REASON")


class Form(StrEnum):
    """Forms of a listing."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Order(StrEnum):
    """Orders of a listing."""

    NAME = "name"
    AGE = "age"
    PHASE = "phase"


@app.command("list", rich_help_panel=JOBS)
@app.command("get", rich_help_panel=JOBS, hidden=True)
def list_jobs(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these. Default: all.")] = None,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Those of every namespace.")] = False,
    output: Annotated[Form, typer.Option("--output", "-o", help="Form of the listing.")] = Form.TABLE,
    selector: Annotated[str, typer.Option("--selector", "-l", help="Only jobs with these labels, e.g. team=faces.")] = "",
    order: Annotated[Order, typer.Option("--sort-by", help="age: the newest first.")] = Order.NAME,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List RewardFLJobs: phase, step, progress, reward, time left and age."""
    if names and (everywhere or selector):
        raise typer.BadParameter("name jobs, or choose them with --all-namespaces or --selector, not both")
    with cluster("list", kubeconfig, context, namespace) as client:
        found = [client.get(name) for name in names] if names else client.list(everywhere=everywhere, selector=selector)
        found = _sorted(found, order)
        if not found and output in (Form.TABLE, Form.WIDE, Form.NAME):
            complain("list", "no RewardFLJobs" + ("" if everywhere else f" in namespace {client.namespace}"))
            return
        typer.echo(render(found, output, everywhere=everywhere, single=bool(names) and len(found) == 1))


def render(jobs: "list[Job]", form: Form, *, everywhere: bool = False, single: bool = False) -> str:
    """Return the listing; `single`: JSON and YAML of one job stand alone, as kubectl writes them."""
    match form:
        case Form.NAME:
            return "\n".join(f"rewardfljob.rewardfl.io/{job.name}" for job in jobs)
        case Form.JSON | Form.YAML:
            answer = jobs[0].raw if single else {"apiVersion": "v1", "kind": "List", "items": [job.raw for job in jobs]}
            return as_json(answer) if form is Form.JSON else as_yaml(answer)
        case _:
            return as_table(jobs, everywhere=everywhere, wide=form is Form.WIDE)


def as_table(jobs: "list[Job]", *, everywhere: bool, wide: bool) -> str:
    """Return the columns of `kubectl get`, and with `wide` what else tells jobs apart."""
    header = (*(("NAMESPACE",) if everywhere else ()), *COLUMNS, *(WIDE_COLUMNS if wide else ()))
    rows = [((job.namespace,) if everywhere else ()) + _cells(job) + (_more_cells(job) if wide else ()) for job in jobs]
    return table(header, rows)


def as_json(value: object) -> str:
    """Return JSON for programs."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def as_yaml(value: object) -> str:
    """Return YAML, without a newline at the end."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)).rstrip("\n")


def _cells(job: "Job") -> tuple[str, ...]:
    status = job.status
    percent = "" if status.percent is None else f"{status.percent}%"
    return (
        job.name, job.phase, status.progress or "", percent, status.reward or "", status.eta or "", duration(job.age_seconds),
    )  # fmt: skip


def _more_cells(job: "Job") -> tuple[str, ...]:
    status = job.status
    saved = "" if status.checkpoint is None else f"step {status.checkpoint.step}"
    return str(job.nodes), str(status.restarts), saved, job.queue, job.reason


def _sorted(jobs: "list[Job]", order: Order) -> "list[Job]":
    """Sort by what was asked for; jobs that are alike in it by namespace and name."""
    by_name = sorted(jobs, key=lambda job: (job.namespace, job.name))
    if order is Order.AGE:
        return sorted(by_name, key=lambda job: job.age_seconds)
    return sorted(by_name, key=lambda job: job.phase) if order is Order.PHASE else by_name
