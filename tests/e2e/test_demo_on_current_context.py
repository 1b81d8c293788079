"""`make demo CLUSTER=current` runs the main job on whatever kubectl points at, and says what it lacks."""

import subprocess

import pytest

from examples.current_cluster import ACCESS_KEY, ENDPOINT, SECRET_KEY
from tests.cluster.paths import REPOSITORY
from tests.e2e.demo_run import DEMO, LEFT_OVER, DemoRun

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


def demo(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(DEMO, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_the_demo_shows_the_job_as_it_runs_and_fetches_its_results(run: DemoRun) -> None:
    assert run.exit_code == 0, run.stderr
    assert "using the kubectl context" in run.stderr
    assert "Training" in run.stdout
    assert "Succeeded" in run.stdout
    assert "demo-results/face-tiny/lora.safetensors" in run.stdout


def test_a_demo_begins_without_the_job_and_the_results_of_the_one_before(run: DemoRun) -> None:
    assert run.exit_code == 0, run.stderr
    assert [status["phase"] for status in run.statuses if status.get("phase") == "Failed"] == []
    assert run.keys
    assert LEFT_OVER not in run.keys


@pytest.mark.parametrize("name", [ENDPOINT, ACCESS_KEY, SECRET_KEY])
def test_a_variable_that_is_missing_is_named(context: dict[str, str], name: str) -> None:
    done = demo({variable: value for variable, value in context.items() if variable != name})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr == f"demo: CLUSTER=current needs the environment variable {name}\n"


def test_wrong_storage_credentials_are_one_line(context: dict[str, str]) -> None:
    done = demo({**context, SECRET_KEY: "wrong-secret-4711"})
    assert done.returncode == 1
    assert f"\ndemo: {ENDPOINT}=" in done.stderr
    assert "Traceback" not in done.stderr
    assert "wrong-secret-4711" not in done.stderr
