"""`rewardfl validate`: everything that is wrong with manifests, at once, before anything is sent to a cluster."""

import importlib.util
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ExitCode, RewardFLError
from ..text import plural, size
from .app import JOBS, Context, Kubeconfig, Namespace, app, cluster, complain, reporting, stop, trainer

if TYPE_CHECKING:
    from ..checked import Checked
    from ..client.sync import Client
    from ..manifests import Document
    from ..schema import Problem

Raw = dict[str, Any]

ManifestFiles = Annotated[
    list[str], typer.Option("--file", "-f", help="A manifest, YAML or JSON, also of several documents; - is standard input.")
]


class Form(StrEnum):
    """Forms of a report."""

    TEXT = "text"
    JSON = "json"


@dataclass
class Report:
    """What was found of one document, by everything that was asked."""

    found: "Checked"
    notes: list[str] = field(default_factory=list)
    estimate: Raw | None = None

    @property
    def document(self) -> "Document":
        """The document."""
        return self.found.document

    @property
    def problems(self) -> list["Problem"]:
        """What is wrong with it."""
        return self.found.problems

    def as_json(self) -> Raw:
        """The same for programs."""
        return {
            "file": self.document.file,
            "document": self.document.number,
            "name": self.document.name,
            "valid": not self.problems,
            "problems": [
                {
                    "line": self.document.line(problem.path),
                    "field": problem.field,
                    "value": problem.shown,
                    "message": problem.message,
                    "remedy": problem.remedy,
                }
                for problem in self.problems
            ],
            "notes": self.notes,
            "estimate": self.estimate,
        }


@app.command(rich_help_panel=JOBS)
def validate(
    files: ManifestFiles,
    server: Annotated[bool, typer.Option("--server", help="Let the API server check it too; nothing is written.")] = False,
    storage: Annotated[bool, typer.Option("--storage", help="Look for dataset, models and bucket, from here.")] = False,
    estimate: Annotated[bool, typer.Option(help="Estimate a GPU's memory; less than a minute, with rewardfl[trainer].")] = True,
    output: Annotated[Form, typer.Option("--output", "-o", help="Form of the report.")] = Form.TEXT,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check RewardFLJobs: every unknown field, wrong value and contradiction, with its line and what to do. Exit code 78."""
    with reporting("validate"):
        reports = _reports("validate", files)
    sound = [report for report in reports if not report.problems]
    if server and sound:
        with cluster("validate", kubeconfig, context, namespace) as client:
            for report in sound:
                _ask_server(report, client)
    for report in [report for report in sound if not report.problems]:
        with reporting("validate"):
            if storage:
                _ask_storage(report)
            if estimate and not report.problems:
                _estimate(report)
    wrong = [report for report in reports if report.problems]
    if output is Form.JSON:
        answer = {"valid": not wrong, "documents": [report.as_json() for report in reports]}
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False, default=str))
    else:
        _tell(reports)
    if wrong:
        count = plural(sum(len(report.problems) for report in wrong), "problem")
        complain("validate", f"{count} in {len(wrong)} of {plural(len(reports), 'RewardFLJob')}")
        stop(ExitCode.BAD_CONFIGURATION)


def checked(command: str, files: list[str], change: Callable[[Raw], Raw]) -> list[Raw]:
    """Return the RewardFLJobs of `files` with what `change` makes of them. Ends the command when one is wrong.

    Raises:
        RewardFLError: a file cannot be read.
    """
    reports = _reports(command, files, change, only_jobs=True)
    lines = [line for report in reports for line in report.found.lines(len(reports) > 1)]
    for line in lines:
        complain(command, line)
    if lines:
        stop(ExitCode.BAD_CONFIGURATION)
    return [report.found.body for report in reports]


def _reports(
    command: str, files: list[str], change: Callable[[Raw], Raw] = lambda body: body, *, only_jobs: bool = False
) -> list[Report]:
    """Check every document; those of other kinds are named and left aside, or refused with `only_jobs`."""
    from .. import manifests
    from ..checked import check

    reports: list[Report] = []
    for document in manifests.read(files):
        if document.is_job:
            reports.append(Report(check(document, change)))
            continue
        kind, where = document.body["kind"], f"{document.file}, document {document.number}"
        if only_jobs:
            complain(command, f"{where}: a {kind}, no RewardFLJob; create it with kubectl apply")
            stop(ExitCode.BAD_CONFIGURATION)
        complain(command, f"{where}: a {kind}, which is not looked at")
    if not reports:
        complain(command, f"no RewardFLJob in {', '.join(files)}")
        stop(ExitCode.BAD_CONFIGURATION)
    return reports


def _tell(reports: list[Report]) -> None:
    for report in reports:
        for line in report.found.lines(len(reports) > 1):
            typer.echo(line)
        if not report.problems:
            typer.echo(f"{report.found.where}: RewardFLJob {report.document.name} is valid")
        for note in report.notes:
            typer.echo(f"  {note}")


def _ask_server(report: Report, client: "Client") -> None:
    """Let the API server check a job without writing it."""
    from ..client.errors import RefusedError
    from ..schema import Problem

    try:
        client.check(report.document.body)
        report.notes.append(f"the API server {client.connection.server} accepts it")
    except RefusedError as error:
        report.problems.append(Problem((), str(error)))


def _ask_storage(report: Report) -> None:
    """Look for what the job names in object storage."""
    from ..job import RewardFLJob
    from ..schema import Problem

    for finding in trainer("validate", "rewardfl_trainer.reachability").check(RewardFLJob.parse(report.document.body)):
        if finding.error is not None:
            report.problems.append(Problem((), str(finding.error)))
        else:
            report.notes.append(f"{finding.subject}: {finding.said}")


def _estimate(report: Report) -> None:
    """Say how much memory a GPU needs, in one line; or that the trainer would refuse the job."""
    from ..schema import Problem, shorten
    from ..validation import resource_spelling

    if report.document.body["spec"].get("gpusPerNode") == 0:
        report.notes.append("memory: not estimated, since it trains on CPUs")
        return
    if importlib.util.find_spec("torch") is None:
        report.notes.append("memory: not estimated, since rewardfl[trainer] is not installed")
        return
    if absent := _rewards_not_here(report.document.body["spec"]["training"]):
        report.notes.append(f"memory: not estimated, since {absent} is not installed here; the image has to have it")
        return
    program = trainer("validate", "rewardfl_trainer.estimate.command")
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(report.document.body, file)
        file.flush()
        try:
            answer = json.loads(program.run(Path(file.name), "json", None))
        except RewardFLError as error:
            if error.exit_code == ExitCode.BAD_CONFIGURATION:
                report.problems.append(Problem((), resource_spelling(f"the trainer would refuse it: {error}")))
            else:  # a file of the pods is not here, or a reward does not run on shapes: no fault of the manifest
                report.notes.append(f"memory: not estimated: {resource_spelling(str(error))}")
            return
        except Exception as error:  # optional work: whatever goes wrong with it says nothing about the manifest
            report.notes.append(f"memory: not estimated: {type(error).__name__}: {shorten(error)}")
            return
    report.estimate = {key: answer[key] for key in ("needed_bytes", "peak_bytes", "host_bytes", "staged_bytes", "fits")}
    report.notes.append(memory_line(answer))


def _rewards_not_here(training: Raw) -> str:
    """Return the packages of rewards that this machine does not have, or nothing: they are the image's."""
    packages = {
        name.partition(":")[0].partition(".")[0] for reward in training.get("rewards") or [] if ":" in (name := reward["name"])
    }
    return " and ".join(sorted(name for name in packages if importlib.util.find_spec(name) is None))


def memory_line(answer: Raw) -> str:
    """Return an estimate (the keys of docs/operations.md) in one line."""
    smallest = next((fit for fit in answer["fits"] if fit["preset"] is not None), None)
    advice = "no GPU is large enough" if smallest is None else _advice(smallest)
    needed, staged = size(answer["needed_bytes"]), size(answer["staged_bytes"])
    return f"memory: a GPU needs {needed} as it is set; {advice}; models to stage {staged}"


def _advice(fit: Raw) -> str:
    offload = " and useGradientCheckpointingOffload" if fit["use_gradient_checkpointing_offload"] else ""
    return f"one of {fit['gpu_gigabytes']} GB is enough with deepspeed.preset {fit['preset']}{offload}"
