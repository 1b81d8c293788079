"""Which cluster is meant, and what is said when it cannot be used: one line and an exit code."""

import base64
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.config import incluster_config

from rewardfl_api.client import connection
from rewardfl_api.client import jobs as client_jobs
from rewardfl_api.errors import ExitCode
from tests.cluster.build import KUBERNETES
from tests.cluster.stack import program_environment
from tests.integration.cli.commands import rewardfl, submit, user
from tests.integration.operator_harness import Installation

pytestmark = pytest.mark.slow


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
