"""The command line on the demo's job, which ran on a real node: its logs, rank by rank, and how it ended."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rewardfl_api.cli import app
from tests.e2e.demo_run import DemoRun

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture(autouse=True)
def kubeconfig(context: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", context["KUBECONFIG"])


def rewardfl(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="rewardfl")


def kubectl_logs(run: DemoRun, node: int, container: str) -> list[str]:
    """What the pod of a node has written, as kubectl tells."""
    selector = f"rewardfl.io/job-name={run.name},batch.kubernetes.io/job-completion-index={node}"
    return run.stack.cluster.kubectl("logs", "-l", selector, "-c", container, "--tail=-1").splitlines()


@pytest.mark.parametrize("container", ["stage", "trainer"])
def test_the_logs_of_all_nodes_are_those_of_their_pods(run: DemoRun, container: str) -> None:
    answer = rewardfl("logs", run.name, "--container", container)
    expected = [f"[node {node}] {line}" for node in (0, 1) for line in kubectl_logs(run, node, container)]
    assert (answer.exit_code, answer.stdout.splitlines()) == (0, expected)
    assert expected


def test_a_ranks_log_is_that_of_the_node_which_held_it(run: DemoRun) -> None:
    for rank in (0, 1):
        answer = rewardfl("logs", run.name, "--rank", str(rank))
        assert (answer.exit_code, answer.stdout.splitlines()) == (0, kubectl_logs(run, rank, "trainer"))
    total = run.last["totalSteps"]
    assert f"rank 0 INFO rewardfl_trainer.train: step {total}/{total}" in rewardfl("logs", run.name, "--rank", "0").stdout


def test_following_a_job_that_has_ended_shows_its_log_and_ends(run: DemoRun) -> None:
    followed = rewardfl("logs", run.name, "--follow", "--node", "0")
    assert (followed.exit_code, followed.stdout.splitlines()) == (0, kubectl_logs(run, 0, "trainer"))


def test_watching_and_describing_it_tell_how_it_ended(run: DemoRun) -> None:
    watched = rewardfl("watch", run.name)
    assert watched.exit_code == 0
    assert watched.stdout.splitlines()[-1].endswith(run.last["results"]["lora"])
    described = rewardfl("describe", run.name).stdout
    for part in (run.last["checkpoint"]["uri"], run.last["progress"], "Completed", "events:"):
        assert part in described


def test_its_report_is_made_again_by_its_name(run: DemoRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", run.stack.storage.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", run.stack.storage.secret_key)
    page = tmp_path / "page.html"
    answer = rewardfl("report", run.name, "--output", str(page))
    assert (answer.exit_code, answer.stderr) == (0, "")
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{run.name}</h1>" in text
    assert "finished" in text
    assert text.count("<video ") == 2
