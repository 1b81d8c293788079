"""Creating jobs, and checking them by the API server."""

import json

import pytest

from rewardfl_api.errors import ExitCode
from tests.integration.cli.commands import rewardfl, submit
from tests.integration.operator_harness import Installation, manifest

pytestmark = pytest.mark.slow


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
