"""What runs before the chart is uninstalled says in one line why it could not do its work. Its work needs a real API server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


@pytest.fixture
def nobodys_kubeconfig(tmp_path: Path) -> str:
    """A kubeconfig for a port that nobody listens on."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "nobody",
        "contexts": [{"name": "nobody", "context": {"cluster": "nobody", "user": "nobody"}}],
        "clusters": [{"name": "nobody", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "nobody", "user": {}}],
    }
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(file)


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")}
    command = [sys.executable, "-m", f"rewardfl_operator.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_an_api_server_that_nobody_reaches_is_named_with_the_remedy(nobodys_kubeconfig: str) -> None:
    ended = run("release", "--kubeconfig", nobodys_kubeconfig, "--patience-seconds", "0")

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("not released: the Jobs of all namespaces: Cannot connect to host 127.0.0.1:1")
    assert "--no-hooks" in ended.stderr


@pytest.mark.parametrize("module", ["release", "main"])
def test_outside_of_a_cluster_it_takes_a_kubeconfig(module: str) -> None:
    ended = run(module)

    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "Service host/port is not set." in ended.stderr
