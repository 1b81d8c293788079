"""Logs through the real API server, from a kubelet that is played."""

from typing import Any

import pytest

from rewardfl_api.errors import ExitCode
from tests.integration.cli.commands import PATIENCE_SECONDS, pods, rewardfl, running, status, submit
from tests.integration.cli.played_logs import Logs
from tests.integration.operator_harness import Installation, Kubelet, now

pytestmark = pytest.mark.slow


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
        assert rewardfl("suspend", "followed").exit_code == 0
        assert process.stderr is not None
        told = "rewardfl logs: followed is suspended; this goes on when it does: rewardfl resume followed -n default\n"
        assert process.stderr.readline() == told
        assert rewardfl("resume", "followed").exit_code == 0
        again.ended = True
        kubelet.end(second)
        status(installation, "followed", phase="Succeeded")
        rest, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert (rest, errors, process.returncode) == ("", "", 0)
