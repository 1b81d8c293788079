"""What the commands say without a cluster, and how they read and write what a cluster answers."""

import io
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.models import V1ObjectMeta, V1Pod
from rich.console import Console
from typer.testing import CliRunner, Result

from rewardfl_api import text
from rewardfl_api.cli import app, watch
from rewardfl_api.cli.describe import lines
from rewardfl_api.client.errors import NotFoundError
from rewardfl_api.client.history import INDEX_LABEL, Pod
from rewardfl_api.client.logs import OneRank, Selection, choose, node_of_rank
from rewardfl_api.client.view import Job
from rewardfl_api.errors import ExitCode
from tests.cluster.paths import REPOSITORY
from tests.unit.operator_objects import body, condition

runner = CliRunner()
CLUSTER_COMMANDS = [
    ["list"],
    ["watch", "a"],
    ["logs", "a"],
    ["describe", "a"],
    ["suspend", "a"],
    ["resume", "a"],
    ["delete", "a"],
]
CONTEXT = {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}


def kubeconfig(server: str = "https://127.0.0.1:1", **changes: Any) -> str:
    return yaml.safe_dump(
        {
            "current-context": "here",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [CONTEXT],
            **changes,
        }
    )


def invoke(*arguments: str) -> Result:
    return runner.invoke(app, list(arguments), prog_name="rewardfl")


@pytest.mark.parametrize("command", CLUSTER_COMMANDS, ids=lambda command: command[0])
def test_an_api_server_that_cannot_be_reached_is_one_line_and_69(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "config").write_text(kubeconfig(), encoding="utf-8")
    answer = invoke(*command, "--kubeconfig", str(tmp_path / "config"))
    assert answer.exit_code == ExitCode.UNAVAILABLE
    assert answer.stderr.count("\n") == 1
    assert f"rewardfl {command[0]}: the API server https://127.0.0.1:1 cannot be reached: " in answer.stderr
    assert "Connection refused" in answer.stderr


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (None, [], "cannot be used"),
        ("", [], "cannot be used"),
        ("{", [], "cannot be used"),
        ("just text", [], "cannot be used"),
        (kubeconfig(contexts=[]), [], "cannot be used"),
        (kubeconfig(**{"current-context": ""}), [], "cannot be used"),
        (kubeconfig(), ["--context", "there"], "it has here"),
    ],
    ids=["missing", "empty", "broken", "text", "no contexts", "no current context", "unknown context"],
)
def test_a_kubeconfig_that_cannot_be_used_is_one_line_and_78(
    tmp_path: Path, content: str | None, options: list[str], expected: str
) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    answer = invoke("list", "--kubeconfig", str(file), *options)
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.BAD_CONFIGURATION, 1), answer.output
    assert expected in answer.stderr
    assert str(file) in answer.stderr


def test_no_kubeconfig_outside_a_pod_is_one_line_and_78(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    answer = invoke("list")
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert answer.stderr == (
        f"rewardfl list: no cluster: there is no kubeconfig at {tmp_path / 'none'}, and this is no pod; "
        "set KUBECONFIG, or name a kubeconfig\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["list", "a", "-A"], "name jobs, or choose them"),
        (["list", "-o", "xml"], "'xml' is not one of"),
        (["logs", "a", "--rank", "0", "--node", "0"], "--rank or --node, not both"),
        (["logs", "a", "-f", "-p"], "an earlier attempt writes nothing more"),
        (["logs", "a", "--rank", "-1"], "--rank"),
        (["submit"], "Missing option '--file'"),
        (["watch"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_is_one_line_and_64(arguments: list[str], said: str) -> None:
    answer = invoke(*arguments)
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.USAGE, 1)
    assert said in answer.stderr


def test_staging_without_the_trainer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump({**body(), "status": None}))
    monkeypatch.setitem(sys.modules, "rewardfl_trainer.staging.by_hand", None)
    answer = invoke("stage", "-f", str(file), "--to", str(tmp_path / "models"))
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.FAILED, 1)
    assert "install rewardfl[trainer]" in answer.stderr


def test_help_needs_no_kubernetes_client() -> None:
    program = (
        "import sys; sys.argv = ['rewardfl', '--help']\n"
        "from rewardfl_api import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: print(end.code, 'kubernetes' in sys.modules, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.splitlines()[-1] == "0 False False"


def test_every_command_is_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert [name for name in commands if not re.search(rf"`rewardfl {name}|## rewardfl [^\n]*{name}|`{name}`", text)] == ["get"]


def job(phase: str = "Training", **status: Any) -> Job:
    raw = body()
    raw["metadata"]["creationTimestamp"] = "2026-01-01T12:00:00Z"
    raw["status"] = {"phase": phase, "observedGeneration": 3, **status}
    return Job(raw)


def test_a_status_is_read_as_far_as_it_can_be_understood() -> None:
    seen = job(
        "Evaluating",
        step=5,
        percent=700,
        future={"a": 1},
        checkpoint={"uri": "s3://b/c"},
        metrics={"reward": 0.5, "loss": "NaN", "new": 1},
        conditions=[condition("Running", reason="Training"), {"type": 3}],
    )
    assert (seen.phase, seen.status.step, seen.status.percent, seen.status.checkpoint) == ("Evaluating", 5, None, None)
    assert seen.status.metrics is not None
    assert (seen.status.metrics.reward, seen.status.metrics.loss) == (0.5, None)
    assert seen.reason == "Training"


@pytest.mark.parametrize(
    "status", [{"conditions": "text"}, {"conditions": [None, []]}, {"metrics": []}, {"restartHistory": [{}]}]
)
def test_a_damaged_status_never_stops_a_listing(status: dict[str, Any]) -> None:
    assert job(**status).status.conditions == []


def test_a_refused_job_that_was_edited_has_not_ended_yet() -> None:
    refused = [condition("Accepted", "False", "InvalidSpec")]
    assert job("Failed", conditions=refused).has_ended
    assert not job("Failed", conditions=refused, observedGeneration=2).has_ended
    assert job("Succeeded", observedGeneration=2).has_ended


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (119, "119s"), (120, "2m"), (3600, "1h"), (3900, "1h5m"), (90000, "1d1h"), (172800, "2d")]
)
def test_durations_are_written_as_kubectl_does(seconds: int, shown: str) -> None:
    assert text.duration(seconds) == shown


def test_bytes_are_written_with_a_prefix() -> None:
    assert [text.size(count) for count in (0, 999, 1000, 69_300_000_000)] == ["0 B", "999 B", "1.0 kB", "69.3 GB"]


def test_the_line_of_a_change_says_what_is_new() -> None:
    training = job(progress="12/40", percent=30, metrics={"reward": 0.6124}, eta="1m12s", restarts=1)
    assert watch.line(training) == "Training  step 12/40 (30%)  reward 0.6124  eta 1m12s  restarts 1"
    staging = job("Staging", percent=50, staging={"bytesDone": 5e9, "bytesTotal": 1e10, "bytesPerSecond": 1e8})
    assert watch.line(staging) == "Staging  5.0 GB of 10.0 GB (50%) at 100.0 MB/s, 50s left"


STAGING = {
    "bytesDone": 5e9, "bytesTotal": 1e10, "bytesPerSecond": 1e8, "filesDone": 1, "filesTotal": 3, "filesCached": 1,
    "bytesCached": 1e9,
    "files": [
        {"name": "high/1.safetensors", "state": "fetching", "bytesDone": 4e9, "bytesTotal": 8e9},
        {"name": "vae\x1b[2J.pth", "state": "cached", "bytesDone": 1e9, "bytesTotal": 1e9},
    ],
}  # fmt: skip


def test_while_files_are_fetched_each_large_one_is_described_and_later_only_their_number() -> None:
    shown = list(lines(job("Staging", percent=50, staging=STAGING), []))
    assert "staged:       5.0 GB of 10.0 GB (50%) at 100.0 MB/s, 50s left, 1 of 3 files (1 cached, 1.0 GB)" in shown
    assert "files:        fetching      4.0 GB of 8.0 GB  high/1.safetensors" in shown
    assert "              cached                  1.0 GB  vae.pth" in shown
    assert "              and 1 smaller file" in shown

    later = "\n".join(lines(job(staging=STAGING), []))
    assert "staged:       5.0 GB, 1 of 3 files (1 cached, 1.0 GB)" in later
    assert "high/1.safetensors" not in later


def test_at_a_terminal_staging_is_a_bar_of_all_and_one_of_each_file_under_way() -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(watch.picture(job("Staging", percent=50, staging=STAGING), []))
    shown = console.export_text()
    assert "5.0 GB of 10.0 GB (50%) at 100.0 MB/s" in shown
    assert "8.0 GB  high/1.safetensors" in shown
    assert "vae" not in shown
    assert shown.count("━") == watch.BAR_WIDTH  # two bars, each half full


def test_sparks_rise_with_the_values() -> None:
    assert watch.sparks([0.0, 0.5, 1.0]) == "▁▅█"
    assert watch.sparks([1.0, 1.0]) == "▁▁"


def test_a_failure_is_described_with_rank_cause_remedy_and_the_end_of_its_log() -> None:
    now = datetime.now(UTC)
    message = "rank 1 ran out of GPU memory."
    shown = "\n".join(
        lines(
            job(
                "Failed",
                conditions=[condition("Failed", reason="OutOfMemory", message=message)],
                failure={
                    "time": (now - timedelta(minutes=5)).isoformat(), "reason": "OutOfMemory", "message": message,
                    "hint": "Fewer frames.", "pod": "face-1-xyz", "container": "trainer", "rank": 1, "exitCode": 1,
                    "logTail": "first line\nlast line",
                },
                restarts=3,
                restartHistory=[
                    {"time": (now - timedelta(hours=1)).isoformat(), "reason": "Disrupted", "pod": "face-0-abc", "counted": False}
                ],
                checkpoint={"step": 25, "uri": "s3://results/face/checkpoints/step-25/", "time": now.isoformat()},
            ),
            [],
        )
    )  # fmt: skip
    for part in (
        "reason:       OutOfMemory",
        "message:      rank 1 ran out of GPU memory.",
        "remedy:       On a GPU: deepspeed.preset zero2_cpuoffload",
        "last failure: rank 1, container trainer of face-1-xyz, exit code 1, 5m ago: OutOfMemory",
        "Fewer frames.",
        "  | last line",
        "restarts:     3 of at most 3",
        "  1h ago: Disrupted (not counted) (face-0-abc)",
        "checkpoint:   step 25, 0s ago: s3://results/face/checkpoints/step-25/",
        "rewardfl logs face -n team",
        "submit it again; it goes on from step 25",
    ):
        assert part in shown, shown


def pod(node: int, age: int) -> Pod:
    created = datetime(2026, 1, 1, tzinfo=UTC) - timedelta(seconds=age)
    return Pod(
        V1Pod(metadata=V1ObjectMeta(name=f"face-{node}-{age}", labels={INDEX_LABEL: str(node)}, creation_timestamp=created))
    )


def test_of_each_node_the_newest_pod_is_read_and_with_previous_the_one_before() -> None:
    found = [pod(1, 10), pod(0, 100), pod(0, 20), pod(0, 50)]
    assert [item.name for item in choose(found, Selection(), job())] == ["face-0-20", "face-1-10"]
    assert [item.name for item in choose(found, Selection(previous=True), job())] == ["face-0-50"]
    assert [item.name for item in choose(found, Selection(node=1), job())] == ["face-1-10"]
    with pytest.raises(NotFoundError, match="no pods of an earlier attempt"):
        choose([pod(0, 1)], Selection(previous=True), job())


def test_a_rank_is_found_on_the_node_that_holds_it() -> None:
    raw = body(nodes=2, processesPerNode=4)
    assert [node_of_rank(Job(raw), rank) for rank in (0, 3, 4, 7)] == [0, 0, 1, 1]
    with pytest.raises(NotFoundError, match="ranks are 0 to 7, 4 on each of 2 nodes"):
        node_of_rank(Job(raw), 8)


def test_of_a_ranks_lines_those_of_others_are_left_out_and_its_traceback_is_kept() -> None:
    log = [
        "2026-01-01 12:00:00,000 rank 1 INFO train: mine",
        "2026-01-01 12:00:01,000 rank 0 INFO train: step 1/2",
        "of rank 0 as well",
        "2026-01-01 12:00:02,000 rank 1 ERROR train: failed",
        "Traceback (most recent call last):",
    ]
    keep = OneRank(1)
    assert [line for line in log if keep.takes(line)] == [log[0], *log[3:]]
