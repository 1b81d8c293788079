"""Listing, describing and steering jobs."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from rewardfl_api.client import jobs as client_jobs
from rewardfl_api.errors import ExitCode
from tests.integration.cli.commands import FAILED, rewardfl, status, submit
from tests.integration.operator_harness import Installation, now

pytestmark = pytest.mark.slow


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
