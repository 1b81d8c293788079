"""The Python client without a cluster: its types, its two forms, what it takes for a job, and how it shows progress."""

import importlib.resources
import inspect
import io
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient

import rewardfl_api
from rewardfl_api import AsyncClient, Client, InvalidJobError, Job, ObjectMeta, RewardFLJob, StepMetrics
from rewardfl_api.cli import describe, listing
from rewardfl_api.client import progress, results
from rewardfl_api.client.connection import Connection
from rewardfl_api.client.errors import ConfigurationError, MissingExtraError
from rewardfl_api.client.halt import Halt, HaltedError
from rewardfl_api.client.history import Event
from rewardfl_api.client.submission import body, body_of
from rewardfl_api.errors import ExitCode, RewardFLError
from rewardfl_api.guard import TRIP_MESSAGE_MAX_CHARACTERS, GuardTrip
from rewardfl_api.metrics import of_log, of_text
from rewardfl_api.progress import Progress
from tests.cluster.paths import REPOSITORY
from tests.integration.operator_harness import manifest
from tests.unit.operator_objects import body as job_body

EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAM = """
from rewardfl_api import AsyncClient, Client, ObjectMeta, RewardFLJob, RewardFLJobSpec, StepMetrics, TrainingParameters

training = TrainingParameters(model_paths=["s3://m/high.safetensors"], reward_model_path="s3://m/antelopev2/", max_steps=4)
spec = RewardFLJobSpec(dataset="s3://d/faces/", output="s3://r/face/", gpus_per_node=1, training=training)


def one(client: Client) -> list[StepMetrics]:
    job = client.wait(client.submit(RewardFLJob(metadata=ObjectMeta(name="face"), spec=spec)), timeout=3, progress=True)
    reveal_type(job.status.results)
    return list(client.metrics(job, follow=True))


async def other(client: AsyncClient) -> None:
    job = await client.submit("job.yaml", dry_run=True)
    async for now in client.watch(job):
        reveal_type(now.status.phase)
    reveal_type(await client.download(job, "here", patterns=["samples"]))
    await client.wait(job, seconds=3)
    client.wait("face").status
"""


def methods(kind: type) -> dict[str, inspect.Signature]:
    found = {name: value for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")}
    return {name: inspect.signature(value) for name, value in found.items()}


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    own = {"with_halt"}
    synchronous = {name: signature for name, signature in methods(Client).items() if name not in own}
    asynchronous = methods(AsyncClient)
    assert list(asynchronous) == [name for name in synchronous if name in asynchronous]
    assert asynchronous.keys() == synchronous.keys()
    for name, signature in synchronous.items():
        assert list(asynchronous[name].parameters.values())[1:] == list(signature.parameters.values())[1:], name
    assert inspect.signature(AsyncClient) == inspect.signature(Client)
    assert inspect.isasyncgenfunction(AsyncClient.watch) == inspect.isgeneratorfunction(Client.watch)


@pytest.mark.slow
def test_a_program_that_uses_both_is_checked_strictly_and_a_wrong_one_is_found(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    assert mypy(tmp_path / "program.py") == [
        'note: Revealed type is "rewardfl_api.progress.Results | None"',
        'note: Revealed type is "' + " | ".join(f"Literal['{phase}']" for phase in PHASES) + ' | None"',
        'note: Revealed type is "list[pathlib.Path]"',
        'error: Unexpected keyword argument "seconds"  [call-arg]',
        'error: "Coroutine[Any, Any, Job]" has no attribute "status"  [attr-defined]',
        'note: Maybe you forgot to use "await"?',
    ]


PHASES = ("Pending", "Queued", "Suspended", "Staging", "Preparing", "Training", "Saving", "Succeeded", "Failed")


@pytest.mark.slow
def test_the_examples_of_its_page_are_checked_strictly(tmp_path: Path) -> None:
    *others, last = EXAMPLE.findall((REPOSITORY / "docs/client.md").read_text(encoding="utf-8"))
    assert len(others) == 2
    wrapped = f"async def main() -> None:\n{textwrap.indent(last, '    ')}"
    (tmp_path / "program.py").write_text("\n".join([*others, wrapped]), encoding="utf-8")
    assert mypy(tmp_path / "program.py") == []


def test_the_job_that_its_page_makes_of_models_is_valid_and_is_sent_whole() -> None:
    _, of_models, _ = EXAMPLE.findall((REPOSITORY / "docs/client.md").read_text(encoding="utf-8"))
    checked: dict[str, Any] = {"client": SimpleNamespace(submit=body)}
    exec(of_models, checked)
    assert checked["job"]["spec"]["training"]["loraBaseModel"] == "dit2"


def mypy(program: Path) -> list[str]:
    """What mypy says of a program, without the lines' numbers."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", str(program)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    said = [line.partition(f"{program.name}:")[2] for line in done.stdout.splitlines() if f"{program.name}:" in line]
    return [line.split(": ", 1)[1] for line in said]


def test_everything_that_is_offered_is_there_typed_and_imported_only_when_asked_for() -> None:
    assert all(getattr(rewardfl_api, name).__name__ == name for name in rewardfl_api.__all__)
    assert importlib.resources.files(rewardfl_api).joinpath("py.typed").is_file()
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        rewardfl_api.Nothing  # noqa: B018
    code = "import sys, rewardfl_api; assert not {'pydantic', 'kubernetes', 'boto3'} & sys.modules.keys()"
    code += "; from rewardfl_api import Client; assert not {'boto3', 'torch', 'typer', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_of_a_model_only_what_was_set_is_sent() -> None:
    given = manifest("face")
    spec = RewardFLJob.parse(given).spec
    model = RewardFLJob(metadata=ObjectMeta(name="face", labels={"team": "faces"}), spec=spec)
    assert body_of(model) == {**given, "metadata": {"name": "face", "labels": {"team": "faces"}}}
    assert body(model, name="other", namespace="team", suspend=True)["metadata"] == {
        "name": "other", "namespace": "team", "labels": {"team": "faces"},
    }  # fmt: skip
    assert body(model, suspend=True)["spec"]["runPolicy"] == {"suspend": True}
    assert "runPolicy" not in body_of(model)["spec"]


def test_a_job_that_was_read_runs_again_beside_itself_only_with_an_output_of_its_own_and_not_suspended() -> None:
    read = Job(job_body(runPolicy={"suspend": True, "backoffLimit": 2}))
    expected = r"spec\.output=s3://results/face/?: team/face writes there, .*; give another with output="
    for other in ({"name": "b"}, {"namespace": "other"}, {"name": "b", "output": "s3://results/face"}):
        with pytest.raises(InvalidJobError, match=expected):
            body(read, **other)
    assert body(read)["spec"]["output"] == "s3://results/face/"
    again = body(read, name="b", output="s3://results/b/")
    assert (again["metadata"]["name"], again["spec"]["output"]) == ("b", "s3://results/b/")
    assert again["spec"]["runPolicy"] == {"backoffLimit": 2}
    assert body(read, suspend=True)["spec"]["runPolicy"] == {"backoffLimit": 2, "suspend": True}
    assert body(manifest("a"), output="s3://results/c/")["spec"]["output"] == "s3://results/c/"


def test_a_file_that_is_not_there_is_named_as_it_was_given() -> None:
    with pytest.raises(RewardFLError, match=r"^nowhere\.yaml: No such file or directory"):
        body("nowhere.yaml")


@pytest.mark.parametrize("endpoint", ["s3.example.com", "https://host/path", "https://user:secret-4711@host"])
def test_an_endpoint_that_is_none_is_told_before_anything_is_asked(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match=r"endpoint=\S+: must be the URL of an S3 service") as caught:
        Client.over(Connection(ApiClient(), "default", "nowhere"), endpoint)
    assert "secret-4711" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n", "no RewardFLJob in the text; begin with kind: RewardFLJob"),
        ("kind: Service\nmetadata: {}", "the text, document 1: a Service, no RewardFLJob; create it with kubectl apply"),
        ("{", "the text:1: this is no YAML"),
        ("---\n".join([yaml.safe_dump(manifest("a"))] * 2), "the text holds 2 RewardFLJobs; submit them one by one"),
        (yaml.safe_dump(manifest("face")).replace("nodes: 2", "nodes: two"), "the text:8: spec.nodes=two: must be"),
    ],
    ids=["nothing", "another kind", "no yaml", "two", "wrong field"],
)
def test_what_is_no_job_says_where_and_what_to_do(text: str, expected: str) -> None:
    with pytest.raises(InvalidJobError) as caught:
        body(text)
    assert expected in str(caught.value)


def test_without_boto3_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "rewardfl_trainer.storage", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "boto3.s3", None)
    monkeypatch.setitem(sys.modules, "boto3.s3.transfer", None)
    with pytest.raises(MissingExtraError, match=r"boto3.*, which is not installed; pip install 'rewardfl\[client\]'"):
        results.Results(Job(job_body()))


def test_metrics_are_read_from_lines_whole_or_damaged() -> None:
    text = '{"step": 2, "reward": 1}\n{"step": 1, "kl": NaN}\n[1]\n{"step": "x"}\n{"step": 1e999}\n{"step": 2, "reward": 3}\n{"st'
    assert of_text(text) == [StepMetrics(1, {"kl": None}), StepMetrics(2, {"reward": 3.0})]
    line = "2026-11-23 03:04:10,536 rank 0 INFO rewardfl_trainer.train: step 3/20 reward 0.672 loss -0.9226"
    assert of_log(line) == StepMetrics(3, {"reward": 0.672, "loss": -0.9226})
    for other in ("step 3/20", "step 3/20 reward", "step 3/20 reward high", "goes on after step 3, from s3://a/b"):
        assert of_log(other) is None


def state(phase: str, **status: Any) -> Job:
    return Job({**job_body(), "status": {"phase": phase, **status}})


def test_elsewhere_than_at_a_terminal_progress_is_a_line_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    show = progress.shown(True)
    for job in (state("Training", progress="1/4", percent=25), state("Training", progress="1/4", percent=25), state("Succeeded")):
        show(job)
    show.close()
    assert [line.partition(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["Training  step 1/4 (25%)", "Succeeded"]


TIME = "2026-01-01T00:00:00Z"
LOUD = "s3://b/\x1b]0;owned\x07\x1b[2J\u202efine\ttail\nnext"


def test_nothing_that_a_pod_wrote_is_obeyed_by_a_terminal() -> None:
    best = {"step": 1, "score": 0.5, "uri": LOUD}
    results = {"lora": LOUD, "report": LOUD, "metrics": LOUD, "samples": LOUD, "bestCheckpoint": best}
    held = {"type": "Running", "status": "True", "reason": "Held", "message": f"The best is {LOUD}.", "lastTransitionTime": TIME}
    job = state("Training", checkpoint={"step": 1, "uri": LOUD, "time": TIME}, results=results, conditions=[held])
    event = Event(None, "Normal", "Held", LOUD, 1)
    rows = [*describe.lines(job, [event]), progress.line(job), listing.as_table([job], everywhere=False, wide=True)]
    assert len([row for row in rows if "fine" in row]) == 9
    assert all("s3://b/fine" in row for row in rows if "fine" in row)
    assert all(part.isprintable() for row in rows for part in row.split("\n"))
    written = Progress.model_validate({"phase": "Training", "time": TIME, "message": LOUD, "results": results})
    assert written.message == "s3://b/fine tail next"
    assert written.results is not None
    assert written.results.best_checkpoint is not None
    assert {written.results.lora, written.results.best_checkpoint.uri} == {written.message}


def test_what_is_made_printable_is_no_longer_than_it_was() -> None:
    text = "\t" * TRIP_MESSAGE_MAX_CHARACTERS
    trip = GuardTrip.model_validate({"reason": "KlTooHigh", "action": "Stop", "step": 1, "time": TIME, "message": text})
    assert trip.message == " " * TRIP_MESSAGE_MAX_CHARACTERS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_progress_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show = progress.shown(True)
    running = {"type": "Running", "status": "True", "reason": "Held", "message": "so {n}", "lastTransitionTime": TIME}
    show(state("Training", progress="1/4", percent=25, metrics={"reward": 0.5}, conditions=[running]))
    show(state("Succeeded"))
    show.close()
    assert "Training  25%|" in terminal.getvalue()
    assert "| step 1/4 (25%)  reward 0.5  Held: so {n}" in terminal.getvalue()
    assert "Succeeded 100%|" in terminal.getvalue()


def test_a_pause_ends_when_it_is_told_to_and_at_its_deadline() -> None:
    halt = Halt()
    threading.Timer(0.05, halt.now).start()
    began = time.monotonic()
    with pytest.raises(HaltedError):
        halt.within(60).pause(60)
    with pytest.raises(HaltedError):
        Halt().within(0.05).within(60).pause(60)
    assert time.monotonic() - began < 30
    Halt().within(None).pause(0)


def test_an_answer_that_is_read_is_shut_when_it_is_told_to_end_and_closed_after_the_block() -> None:
    class Answer:
        shut = closed = False

        def shutdown(self) -> None:
            self.shut = True

        def close(self) -> None:
            self.closed = True

    halt, answer, late = Halt(), Answer(), Answer()
    with halt.reading(answer):
        halt.now()
        assert (answer.shut, answer.closed) == (True, False)
    with halt.reading(late):
        assert late.shut
    assert answer.closed
