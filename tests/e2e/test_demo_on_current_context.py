"""`make demo CLUSTER=current` runs the same job on whatever kubectl points at, and says what it lacks."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.current_cluster import ACCESS_KEY, ENDPOINT, SECRET_KEY, VALUES
from examples.demo import read_manifest
from tests.cluster import LocalCluster
from tests.cluster.build import HELM, KUBERNETES
from tests.cluster.paths import REPOSITORY
from tests.cluster.stack import Stack, host_values

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

DEMO = [sys.executable, "-m", "examples.demo", "--cluster", "current"]


@pytest.fixture
def context(stack: Stack, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose kubectl, helm, context and S3 credentials are set up."""
    assert isinstance(stack.cluster, LocalCluster)
    for name, program in (("kubectl", KUBERNETES.program("kubectl")), ("helm", HELM.program("helm"))):
        (tmp_path / name).symlink_to(program)
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(host_values(stack.cluster.load_host_image())), encoding="utf-8")
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(stack.cluster.kubeconfig),
        ENDPOINT: stack.storage.endpoint,
        ACCESS_KEY: stack.storage.access_key,
        SECRET_KEY: stack.storage.secret_key,
        VALUES: str(values),
    }


def demo(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(DEMO, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_the_job_runs_on_the_current_context_even_where_a_demo_ran_before(stack: Stack, context: dict[str, str]) -> None:
    stack.apply(finished_job(stack))
    done = demo(context)
    assert done.returncode == 0, done.stderr
    assert "using the kubectl context" in done.stderr
    assert "Training" in done.stdout
    assert "Succeeded" in done.stdout
    assert "demo-results/face-tiny/lora.safetensors" in done.stdout


def finished_job(stack: Stack) -> dict[str, Any]:
    """A job of the demo's name that fails at once: what an earlier demo has left."""
    manifest = read_manifest(stack.storage_spec())
    manifest["spec"]["training"]["modelName"] = "wan9_9"
    return manifest


@pytest.mark.parametrize("name", [ENDPOINT, ACCESS_KEY, SECRET_KEY])
def test_a_variable_that_is_missing_is_named(context: dict[str, str], name: str) -> None:
    del context[name]
    done = demo(context)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == f"demo: CLUSTER=current needs the environment variable {name}\n"


def test_wrong_storage_credentials_are_one_line(context: dict[str, str]) -> None:
    done = demo({**context, SECRET_KEY: "wrong-secret-4711"})
    assert done.returncode == 1
    assert f"\ndemo: {ENDPOINT}=" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong-secret-4711" not in done.stderr
