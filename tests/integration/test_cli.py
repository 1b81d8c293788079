"""The commands against a real API server, as a user with the role `edit`. No operator runs: the tests write the status."""

import base64
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.config import incluster_config
from typer.testing import CliRunner, Result

from rewardfl_api.cli import app
from rewardfl_api.client import connection
from rewardfl_api.client import jobs as client_jobs
from rewardfl_api.client.connection import Connection
from rewardfl_api.client.errors import DeletedError, UnreachableError
from rewardfl_api.errors import ExitCode
from tests.cluster.build import KUBERNETES
from tests.cluster.stack import program_environment
from tests.integration.api_proxy import ApiProxy, Fault, api_proxy
from tests.integration.operator_harness import Installation, Kubelet, manifest, now, until
from tests.integration.played_logs import Logs, played_logs

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 30.0
FAILED = {
    "type": "Failed", "status": "True", "reason": "OutOfMemory", "message": "rank 1 needed more memory.",
    "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation.start(tmp_path_factory.mktemp("installation")) as running:
        yield running


@pytest.fixture(scope="module")
def editor(installation: Installation) -> str:
    return user(installation, "editor", "edit")


@pytest.fixture(scope="module")
def logs(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logs]:
    with played_logs(installation, tmp_path_factory.mktemp("kubelet")) as running:
        yield running


@pytest.fixture(autouse=True)
def context(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", editor)


def user(installation: Installation, name: str, role: str) -> str:
    """A kubeconfig of a user who has one of Kubernetes' own roles everywhere."""
    kubectl = installation.cluster.kubectl
    kubectl("create", "serviceaccount", name)
    kubectl("create", "clusterrolebinding", name, f"--clusterrole={role}", f"--serviceaccount=default:{name}")
    verb = "list" if role == "view" else "create"
    account = f"--as=system:serviceaccount:default:{name}"

    def may() -> bool:
        return installation.cluster.kubectl("get", "clusterrole", role, "-o", "json").count("rewardfljobs") > 0

    until(f"the chart's roles are part of {role}", may)
    assert kubectl("auth", "can-i", verb, "rewardfljobs", account).strip() == "yes"
    admin = yaml.safe_load(installation.cluster.kubeconfig.read_text(encoding="utf-8"))
    token = kubectl("create", "token", name, "--duration=1h").strip()
    file = installation.folder / f"{name}.kubeconfig"
    users = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
    file.write_text(yaml.safe_dump({**admin, "users": users}), encoding="utf-8")
    return str(file)


def rewardfl(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="rewardfl")


def submit(name: str, *options: str, **spec: Any) -> Result:
    return rewardfl("submit", "-f", "-", *options, stdin=json.dumps(manifest(name, **spec)))


def status(installation: Installation, name: str, **fields: Any) -> None:
    installation.patch("rewardfljob", name, {"status": {"observedGeneration": 1, **fields}}, subresource="status")


@contextmanager
def running(*arguments: str, kubeconfig: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """The program in a process of its own."""
    environment = {**os.environ, **({"KUBECONFIG": kubeconfig} if kubeconfig else {})}
    command = [sys.executable, "-m", "rewardfl_api.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that the program prints, without its time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_SECONDS)
    assert ready, "the program printed nothing more"
    return process.stdout.readline().rstrip("\n").partition(" ")[2]


# submit


def test_submit_creates_a_job_and_says_what_to_do_when_there_is_one(installation: Installation) -> None:
    first = submit("submitted")
    assert (first.exit_code, first.stdout) == (0, "rewardfljob.rewardfl.io/submitted created in namespace default\n")
    assert installation.get("rewardfljob", "submitted")["spec"]["nodes"] == 2
    again = submit("submitted")
    assert again.exit_code == ExitCode.FAILED
    assert again.stderr == (
        "rewardfl submit: RewardFLJob default/submitted exists already; delete it (rewardfl delete submitted), "
        "or give another name with --name\n"
    )


def test_of_several_jobs_none_is_created_when_one_cannot_be(installation: Installation) -> None:
    if installation.find("rewardfljob", "submitted") is None:
        submit("submitted")
    both = "\n---\n".join(json.dumps(manifest(name)) for name in ("first-of-two", "submitted"))
    answer = rewardfl("submit", "-f", "-", stdin=both)
    assert (answer.exit_code, answer.stdout) == (ExitCode.FAILED, "")
    assert "RewardFLJob default/submitted exists already" in answer.stderr
    assert installation.find("rewardfljob", "first-of-two") is None


def test_submit_takes_another_name_and_can_create_it_suspended(installation: Installation) -> None:
    answer = submit("submitted", "--name", "renamed", "--suspend")
    assert answer.stdout == "rewardfljob.rewardfl.io/renamed created, suspended in namespace default\n"
    assert installation.get("rewardfljob", "renamed")["spec"]["runPolicy"]["suspend"] is True


def test_a_dry_run_asks_the_api_server_and_creates_nothing(installation: Installation) -> None:
    assert "would be created" in submit("dry", "--dry-run").stdout
    assert installation.find("rewardfljob", "dry") is None


def test_what_only_the_api_server_knows_is_told_by_validate_and_submit(installation: Installation) -> None:
    wrong = manifest("labelled")
    wrong["metadata"]["labels"] = {"team": "not a label!"}
    for command in (["validate", "--server", "--no-estimate"], ["submit"]):
        answer = rewardfl(*command, "-f", "-", stdin=json.dumps(wrong))
        assert answer.exit_code == ExitCode.BAD_CONFIGURATION
        assert "the API server refuses RewardFLJob default/labelled" in answer.output
        assert "Traceback" not in answer.output
    assert installation.find("rewardfljob", "labelled") is None


def test_validate_lets_the_api_server_check_a_new_job_and_an_edit(installation: Installation) -> None:
    submit("edited")
    for name, expected in (("fresh", 0), ("edited", 0)):
        answer = rewardfl("validate", "--server", "--no-estimate", "-f", "-", stdin=json.dumps(manifest(name)))
        assert (answer.exit_code, "accepts it" in answer.stdout) == (expected, True), answer.output
    elsewhere = manifest("edited", dataset="s3://other/faces/")
    answer = rewardfl("validate", "--server", "--no-estimate", "-f", "-", stdin=json.dumps(elsewhere))
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert "dataset: cannot be changed" in answer.stdout
    assert installation.find("rewardfljob", "fresh") is None


# list


@pytest.fixture(scope="module")
def listed(installation: Installation) -> str:
    """A namespace with two jobs, one of which trains in a queue."""
    installation.cluster.kubectl("create", "namespace", "team")
    for name, labels in (("beta", {}), ("alpha", {"kueue.x-k8s.io/queue-name": "gpus", "team": "faces"})):
        body = manifest(name)
        body["metadata"].update(namespace="team", labels=labels)
        installation.create(body)
    state = {
        "phase": "Training", "progress": "12/40", "step": 12, "totalSteps": 40, "percent": 30, "reward": "0.612", "eta": "1h12m",
        "restarts": 1, "checkpoint": {"step": 10, "uri": "s3://b/c/", "time": now()}, "observedGeneration": 1,
        "conditions": [{**FAILED, "type": "Running", "reason": "Training"}],
    }  # fmt: skip
    patch = json.dumps({"status": state})
    installation.cluster.kubectl(
        "patch", "rewardfljob", "alpha", "--namespace=team", "--type=merge", "--subresource=status", "-p", patch
    )
    return "team"


def test_a_listing_shows_the_columns_of_kubectl_sorted_by_name(listed: str) -> None:
    lines = [line.split() for line in rewardfl("list", "-n", listed).stdout.splitlines()]
    assert lines[0] == ["NAME", "PHASE", "STEP", "PROGRESS", "REWARD", "ETA", "AGE"]
    assert lines[1][:6] == ["alpha", "Training", "12/40", "30%", "0.612", "1h12m"]
    assert lines[2][0] == "beta"


def test_a_wide_listing_shows_queue_restarts_checkpoint_and_reason(listed: str) -> None:
    lines = [line.split() for line in rewardfl("list", "-n", listed, "-o", "wide").stdout.splitlines()]
    assert lines[0][7:] == ["NODES", "RESTARTS", "CHECKPOINT", "QUEUE", "REASON"]
    assert lines[1][7:] == ["2", "1", "step", "10", "gpus", "Training"]


def test_listings_for_programs_hold_the_resources_as_they_are(installation: Installation, listed: str) -> None:
    answer = rewardfl("list", "-n", listed, "-o", "json")
    assert [item["metadata"]["name"] for item in json.loads(answer.stdout)["items"]] == ["alpha", "beta"]
    assert yaml.safe_load(rewardfl("list", "-n", listed, "-o", "yaml").stdout) == json.loads(answer.stdout)
    alone = json.loads(rewardfl("get", "alpha", "-n", listed, "-o", "json").stdout)
    assert alone["metadata"]["uid"] == installation.get("rewardfljob", "alpha", listed)["metadata"]["uid"]
    assert rewardfl("list", "-n", listed, "-o", "name").stdout.split() == [
        "rewardfljob.rewardfl.io/alpha", "rewardfljob.rewardfl.io/beta",
    ]  # fmt: skip


def test_a_listing_is_narrowed_and_widened(listed: str) -> None:
    assert rewardfl("list", "-n", listed, "-l", "team=faces", "-o", "name").stdout.split() == ["rewardfljob.rewardfl.io/alpha"]
    everywhere = rewardfl("list", "-A").stdout.splitlines()
    assert everywhere[0].startswith("NAMESPACE")
    assert any(line.split()[:2] == ["team", "alpha"] for line in everywhere)
    assert rewardfl("list", "-n", listed, "--sort-by", "phase", "-o", "name").stdout.split()[0].endswith("beta")


def test_a_long_listing_is_read_in_pages(listed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_jobs, "PAGE", 1)
    assert len(rewardfl("list", "-n", listed, "-o", "name").stdout.split()) == 2


def test_an_empty_listing_is_no_error_and_empty_for_programs() -> None:
    answer = rewardfl("list", "-n", "kube-public")
    assert (answer.exit_code, answer.stdout) == (0, "")
    assert answer.stderr == "rewardfl list: no RewardFLJobs in namespace kube-public\n"
    assert json.loads(rewardfl("list", "-n", "kube-public", "-o", "json").stdout)["items"] == []


def test_a_pipe_whose_reader_has_gone_is_no_traceback(listed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "rewardfl_api.cli", "list", "-A", "-o", "json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


# describe, suspend, resume, delete


def test_a_job_is_described_from_what_the_cluster_says(installation: Installation) -> None:
    submit("described")
    status(installation, "described", phase="Failed", conditions=[FAILED], restarts=2)
    event = {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "described.1"}, "reason": "Restarting", "type": "Warning",
        "message": "Starting again", "lastTimestamp": now(), "count": 2,
        "involvedObject": {"kind": "RewardFLJob", "name": "described", "namespace": "default"},
    }  # fmt: skip
    installation.create(event)
    answer = rewardfl("describe", "described")
    assert answer.exit_code == 0
    for part in ("default/described", "OutOfMemory", "rank 1 needed more memory.", "zero2_cpuoffload", "2 of at most 3"):
        assert part in answer.stdout, answer.stdout
    assert "Warning Restarting x2: Starting again" in answer.stdout
    assert "rewardfl logs described" in answer.stdout


def test_suspend_and_resume_change_the_job_once(installation: Installation) -> None:
    submit("paused")
    assert rewardfl("suspend", "paused").stdout == "paused will be suspended\n"
    assert installation.get("rewardfljob", "paused")["spec"]["runPolicy"]["suspend"] is True
    assert rewardfl("suspend", "paused").stdout == "paused is suspended already\n"
    status(installation, "paused", phase="Suspended", checkpoint={"step": 25, "uri": "s3://b/c/", "time": now()})
    assert rewardfl("resume", "paused").stdout == "paused goes on from step 25\n"
    assert installation.get("rewardfljob", "paused")["spec"]["runPolicy"]["suspend"] is False
    assert rewardfl("resume", "paused").stdout == "paused is not suspended\n"


def test_a_job_that_has_ended_cannot_be_suspended(installation: Installation) -> None:
    submit("ended")
    status(installation, "ended", phase="Succeeded")
    answer = rewardfl("suspend", "ended")
    assert (answer.exit_code, answer.stderr) == (
        ExitCode.FAILED,
        "rewardfl suspend: ended has succeeded already; there is nothing to suspend\n",
    )


def test_a_running_job_is_deleted_only_after_a_yes(installation: Installation) -> None:
    submit("deleted")
    assert rewardfl("delete", "deleted", stdin="n\n").exit_code == ExitCode.FAILED
    assert installation.find("rewardfljob", "deleted") is not None
    assert rewardfl("delete", "deleted", "--yes").stdout.startswith("deleted is deleted; its results stay in s3://results/")
    assert installation.find("rewardfljob", "deleted") is None


# errors


@pytest.mark.parametrize("command", ["describe", "watch", "logs", "suspend", "resume", "delete", "get"])
def test_a_job_that_does_not_exist_is_one_line_with_names_like_it(installation: Installation, command: str) -> None:
    if installation.find("rewardfljob", "face-identity") is None:
        submit("face-identity")
    answer = rewardfl(command, "face-identiti")
    assert answer.exit_code == ExitCode.MISSING_INPUT
    said = "list" if command == "get" else command
    assert answer.stderr == f"rewardfl {said}: RewardFLJob default/face-identiti does not exist; did you mean face-identity?\n"


def test_a_namespace_that_does_not_exist_is_one_line() -> None:
    answer = submit("lost", "-n", "nowhere")
    assert answer.exit_code == ExitCode.MISSING_INPUT
    assert answer.stderr.startswith("rewardfl submit: namespace nowhere does not exist; create it")


@pytest.mark.parametrize("who", ["editor", "administrator"])
def test_a_cluster_without_the_definition_is_one_line(
    installation: Installation, editor: str, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", editor if who == "editor" else str(installation.cluster.kubeconfig))
    for module in (client_jobs, connection):
        monkeypatch.setattr(module, "GROUP", "unknown.io")
    for answer in (rewardfl("list"), rewardfl("describe", "a"), submit("a")):
        assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.MISSING_INPUT, 1)
        assert "does not know rewardfljobs.unknown.io; install the chart" in answer.stderr


def test_what_a_viewer_may_not_do_is_one_line_and_looking_is_allowed(installation: Installation) -> None:
    submit("seen")
    viewer = user(installation, "viewer", "view")
    assert "seen" in rewardfl("list", "--kubeconfig", viewer).stdout
    assert rewardfl("describe", "seen", "--kubeconfig", viewer).exit_code == 0
    answer = rewardfl("suspend", "seen", "--kubeconfig", viewer)
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.BAD_CONFIGURATION, 1)
    assert "cannot patch resource" in answer.stderr
    assert "ask for a role that allows it" in answer.stderr


def test_credentials_that_are_not_accepted_are_one_line(tmp_path: Path, editor: str) -> None:
    content = yaml.safe_load(Path(editor).read_text(encoding="utf-8"))
    content["users"][0]["user"] = {"token": "wrong-token-4711"}
    (tmp_path / "config").write_text(yaml.safe_dump(content), encoding="utf-8")
    answer = rewardfl("list", "--kubeconfig", str(tmp_path / "config"))
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.BAD_CONFIGURATION, 1)
    assert "does not accept the credentials; log in to the cluster again" in answer.stderr
    assert "wrong-token-4711" not in answer.output


def test_the_namespace_is_that_of_the_context(tmp_path: Path, editor: str, listed: str) -> None:
    content = yaml.safe_load(Path(editor).read_text(encoding="utf-8"))
    there = {**content["contexts"][0]["context"], "namespace": listed}
    content["contexts"].append({"name": "there", "context": there})
    (tmp_path / "config").write_text(yaml.safe_dump(content), encoding="utf-8")
    answer = rewardfl("list", "-o", "name", "--kubeconfig", str(tmp_path / "config"), "--context", "there")
    assert answer.stdout.split() == ["rewardfljob.rewardfl.io/alpha", "rewardfljob.rewardfl.io/beta"]


def test_in_a_pod_its_service_account_and_namespace_are_used(
    tmp_path: Path, editor: str, listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(Path(editor).read_text(encoding="utf-8"))
    server = urlsplit(content["clusters"][0]["cluster"]["server"])
    (tmp_path / "token").write_text(content["users"][0]["user"]["token"], encoding="utf-8")
    (tmp_path / "ca.crt").write_bytes(base64.b64decode(content["clusters"][0]["cluster"]["certificate-authority-data"]))
    (tmp_path / "namespace").write_text(listed, encoding="utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(server.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(connection, "SERVICE_ACCOUNT_NAMESPACE", tmp_path / "namespace")
    assert rewardfl("list", "-o", "name").stdout.split() == ["rewardfljob.rewardfl.io/alpha", "rewardfljob.rewardfl.io/beta"]


def test_kubectl_runs_it_as_a_plugin(tmp_path: Path, listed: str) -> None:
    environment = program_environment()
    (tmp_path / "kubectl").symlink_to(KUBERNETES.program("kubectl"))
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"

    def kubectl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "rewardfl", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    assert kubectl("list", "-n", listed, "-o", "name").stdout.split()[0] == "rewardfljob.rewardfl.io/alpha"
    wrong = kubectl("list", "--nonsense")
    assert (wrong.returncode, wrong.stderr) == (
        ExitCode.USAGE,
        "kubectl rewardfl list: No such option: --nonsense; see kubectl rewardfl list --help\n",
    )


# watch


def test_a_watch_prints_a_line_a_change_and_ends_with_the_job(installation: Installation) -> None:
    submit("watched")
    with running("watch", "watched") as process:
        assert next_line(process) == "new"
        status(installation, "watched", phase="Training", progress="1/4", percent=25, metrics={"reward": 0.25})
        assert next_line(process) == "Training  step 1/4 (25%)  reward 0.25"
        status(installation, "watched", lastProgressTime=now())
        status(installation, "watched", progress="2/4", percent=50, eta="5s")
        assert next_line(process) == "Training  step 2/4 (50%)  reward 0.25  eta 5s"
        status(installation, "watched", phase="Succeeded", results={"lora": "s3://b/lora.safetensors"}, eta=None)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert output.splitlines()[-1].startswith("watched succeeded after ")
        assert output.splitlines()[-1].endswith(": s3://b/lora.safetensors")
        assert (process.returncode, errors) == (0, "")


def test_submitting_and_waiting_ends_with_1_when_the_job_fails(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(manifest("failing")), encoding="utf-8")
    with running("submit", "-f", str(file), "--wait") as process:
        assert "created" in next_line(process)
        next_line(process)
        status(installation, "failing", phase="Failed", conditions=[FAILED])
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == ExitCode.FAILED
        assert errors == (
            "rewardfl submit: failing failed: OutOfMemory: rank 1 needed more memory; see rewardfl describe failing -n default\n"
        )


def test_ctrl_c_ends_a_watch_with_130_and_leaves_the_job_alone(installation: Installation) -> None:
    submit("interrupted")
    with running("watch", "interrupted") as process:
        next_line(process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 130
        assert "Traceback" not in errors
    assert installation.get("rewardfljob", "interrupted")["spec"]["runPolicy"]["suspend"] is False


def test_a_watch_at_a_terminal_draws_bars_and_metrics(installation: Installation) -> None:
    submit("drawn")
    status(installation, "drawn", phase="Training", progress="1/4", step=1, percent=25, metrics={"reward": 0.1, "loss": 2.0})
    shown, code = at_a_terminal(
        ["watch", "drawn"],
        [
            (b"25%", lambda: status(installation, "drawn", progress="2/4", step=2, percent=50, metrics={"reward": 0.9})),
            ("▁█".encode(), lambda: status(installation, "drawn", phase="Succeeded", percent=100)),
        ],
    )
    text = shown.decode()
    assert code == 0
    assert "━" in text
    assert "loss 2" in text
    assert "drawn succeeded" in text


def at_a_terminal(arguments: list[str], steps: list[tuple[bytes, Callable[[], None]]]) -> tuple[bytes, int]:
    """Run the program at a terminal; as soon as it shows what a step names, do what the step says."""
    terminal, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-m", "rewardfl_api.cli", *arguments]
    with subprocess.Popen(command, env=environment, stdin=other, stdout=other, stderr=other) as process:
        os.close(other)
        shown, waiting = b"", list(steps)
        while select.select([terminal], [], [], PATIENCE_SECONDS)[0]:
            try:
                part = os.read(terminal, 65536)
            except OSError:  # the program has closed its end
                break
            shown += part
            while waiting and waiting[0][0] in shown:
                waiting.pop(0)[1]()
        else:
            process.kill()
        code = process.wait(PATIENCE_SECONDS)
    os.close(terminal)
    assert not waiting, shown.decode()
    return shown, code


@pytest.fixture
def proxied(editor: str, tmp_path: Path) -> Iterator[tuple[ApiProxy, client_jobs.Jobs]]:
    with api_proxy(editor) as proxy:
        yield proxy, client_jobs.Jobs(Connection.open(proxy.kubeconfig(editor, tmp_path / "proxied")))


def test_a_watch_that_is_cut_again_and_again_misses_nothing(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs]
) -> None:
    proxy, jobs = proxied
    submit("cut")
    proxy.rules.append(lambda call: Fault(cut_after=700) if call.is_watch else None)
    seen: list[str] = []
    for job in jobs.watch("cut"):
        seen.append(job.status.progress or "")
        if len(seen) == 4:
            break
        status(installation, "cut", phase="Training", progress=f"{len(seen)}/9")
    assert seen == ["", "1/9", "2/9", "3/9"]
    assert proxy.faults >= 2


def test_a_watch_outlives_an_api_server_that_answers_with_errors_for_a_while(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "BACK_OFF_SECONDS", (0.1,))
    submit("shaken")
    watch = jobs.watch("shaken")
    assert next(watch).phase == ""
    faults = iter([Fault(status=500), Fault(refuse=True), Fault(status=429), Fault(status=503)])
    proxy.rules.append(lambda call: next(faults, None))
    status(installation, "shaken", phase="Training")
    assert next(watch).phase == "Training"
    assert proxy.faults == 4


def test_a_watch_that_stalls_without_a_word_is_begun_anew(
    installation: Installation, proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "WATCH_SECONDS", 1)
    monkeypatch.setattr(client_jobs, "WATCH_MARGIN_SECONDS", 0.5)
    submit("stalled")
    proxy.frozen = lambda call: True
    watch = jobs.watch("stalled")
    next(watch)
    threading.Timer(0.5, status, [installation, "stalled"], {"phase": "Training"}).start()
    began = time.monotonic()
    assert next(watch).phase == "Training"
    assert time.monotonic() - began < PATIENCE_SECONDS


def test_a_watch_gives_up_when_the_api_server_stays_away(
    proxied: tuple[ApiProxy, client_jobs.Jobs], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, jobs = proxied
    monkeypatch.setattr(client_jobs, "PATIENCE_SECONDS", 1.0)
    submit("gone")
    watch = jobs.watch("gone")
    next(watch)
    proxy.rules.append(lambda call: Fault(refuse=True))
    with pytest.raises(UnreachableError, match="cannot be reached"):
        next(watch)


def test_a_watched_job_that_is_deleted_or_replaced_ends_the_watch(installation: Installation, editor: str) -> None:
    submit("fleeting")
    watch = client_jobs.Jobs(Connection.open(editor)).watch("fleeting")
    next(watch)
    rewardfl("delete", "fleeting", "--yes")
    with pytest.raises(DeletedError, match="default/fleeting was deleted"):
        next(watch)
    submit("fleeting")
    watch = client_jobs.Jobs(Connection.open(editor)).watch("fleeting")
    next(watch)
    rewardfl("delete", "fleeting", "--yes")
    submit("fleeting")
    with pytest.raises(DeletedError):
        next(watch)


# logs


def pods(installation: Installation, name: str, nodes: int = 2) -> list[dict[str, Any]]:
    """Make a job's pods, as its Kubernetes Job would, and take them onto the node."""
    made = []
    for index in range(nodes):
        labels = {"rewardfl.io/job-name": name, "batch.kubernetes.io/job-completion-index": str(index)}
        spec = {
            "restartPolicy": "Never",
            "initContainers": [{"name": "stage", "image": "i"}],
            "containers": [{"name": "trainer", "image": "i"}],
        }
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"generateName": f"{name}-{index}-", "labels": labels},
            "spec": spec,
        }
        pod = installation.create(body)
        Kubelet(installation, name).bind(pod)
        made.append(pod)
    return made


def test_logs_are_read_pod_by_pod_by_node_and_by_rank(installation: Installation, logs: Logs) -> None:
    submit("logged", processesPerNode=2)
    made = pods(installation, "logged")
    for index, pod in enumerate(made):
        Kubelet(installation, "logged").train(pod)
        lines = [f"2026-01-01 12:00:00,000 rank {2 * index + local} INFO train: hello" for local in range(2)]
        logs[pod["metadata"]["name"], "trainer"].write(*lines)
        logs[pod["metadata"]["name"], "stage"].write("staged")
    answer = rewardfl("logs", "logged")
    assert answer.exit_code == 0, answer.output
    assert [line.split(" INFO")[0].replace("2026-01-01 12:00:00,000 ", "") for line in answer.stdout.splitlines()] == [
        "[node 0] rank 0", "[node 0] rank 1", "[node 1] rank 2", "[node 1] rank 3",
    ]  # fmt: skip
    assert rewardfl("logs", "logged", "--rank", "3").stdout == "2026-01-01 12:00:00,000 rank 3 INFO train: hello\n"
    assert rewardfl("logs", "logged", "--rank", "2", "--tail", "1").stdout == "2026-01-01 12:00:00,000 rank 2 INFO train: hello\n"
    assert (
        rewardfl("logs", "logged", "--rank", "2", "--tail", "0").stderr == "rewardfl logs: nothing has been written by rank 2\n"
    )
    assert rewardfl("logs", "logged", "--node", "1", "-c", "stage").stdout == "staged\n"
    assert rewardfl("logs", "logged", "--node", "1", "--tail", "1").stdout.count("\n") == 1
    assert rewardfl("logs", "logged", "--rank", "4").exit_code == ExitCode.MISSING_INPUT
    assert "its nodes are 0 to 1" in rewardfl("logs", "logged", "--node", "2").stderr
    assert "has no pods of an earlier attempt" in rewardfl("logs", "logged", "--previous").stderr


def test_while_models_are_fetched_that_log_is_shown_and_before_it_there_is_none(installation: Installation, logs: Logs) -> None:
    submit("staging")
    assert "has no pods; see rewardfl describe staging" in rewardfl("logs", "staging").stderr
    made = pods(installation, "staging")
    assert "no container of staging has started yet (pods: Pending)" in rewardfl("logs", "staging").stderr
    installation.patch(
        "pod",
        made[0]["metadata"]["name"],
        {"status": {"initContainerStatuses": [container("stage", {"running": {"startedAt": now()}})]}},
        subresource="status",
    )
    logs[made[0]["metadata"]["name"], "stage"].write("fetching")
    assert rewardfl("logs", "staging").stdout == "[node 0] fetching\n"


def container(name: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "state": state, "image": "i", "imageID": "i", "ready": False, "restartCount": 0}


def test_a_followed_log_survives_a_cut_and_a_restart_without_losing_or_repeating_a_line(
    installation: Installation, logs: Logs
) -> None:
    submit("followed", nodes=1)
    (first,) = pods(installation, "followed", nodes=1)
    kubelet = Kubelet(installation, "followed")
    kubelet.train(first)
    log = logs[first["metadata"]["name"], "trainer"]
    log.cut_after = 2
    log.write("one", "two", "three", "four")
    with running("logs", "followed", "-f") as process:
        assert process.stdout is not None
        assert [process.stdout.readline().strip() for _ in range(4)] == ["one", "two", "three", "four"]
        assert log.asked == 2
        log.write("five")
        log.ended = True
        kubelet.end(first, 1)
        (second,) = pods(installation, "followed", nodes=1)
        kubelet.train(second)
        again = logs[second["metadata"]["name"], "trainer"]
        again.write("six")
        assert [process.stdout.readline().strip() for _ in range(2)] == ["five", "six"]
        assert rewardfl("logs", "followed", "--previous").stdout.splitlines() == ["one", "two", "three", "four", "five"]
        again.ended = True
        kubelet.end(second)
        status(installation, "followed", phase="Succeeded")
        rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (rest, errors, process.returncode) == ("", "", 0)
