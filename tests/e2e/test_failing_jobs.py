"""Jobs that cannot work fail once, with the right reason and a remedy in the condition. All run at the same time."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.demo import read_manifest
from rewardfl_trainer import video
from tests.cluster.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

JOB_TIMEOUT_SECONDS = 600
CASES: dict[str, dict[str, Any]] = {
    "missing-bucket": {"dataset": "s3://no-such-bucket/dataset/"},
    "wrong-credentials": {"storage": {"credentialsSecretName": "wrong-credentials"}},
    "no-face": {"dataset": "s3://rewardfl/faceless/"},
    "unknown-model": {"training": {"modelName": "wan9_9"}},
}
EXPECTED = {
    "missing-bucket": ("BucketNotFound", "s3://no-such-bucket/dataset/"),
    "wrong-credentials": ("StorageAccessDenied", "credentialsSecretName"),
    "no-face": ("NoFaceInFirstFrame", "use other videos"),
    "unknown-model": ("InvalidSpec", "wan2_2"),
}


def upload_faceless_dataset(stack: Stack) -> None:
    """One clip of slowly changing stripes."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stripes = torch.sin(torch.arange(64) / 5.0).expand(3, 9, 64, 64) * 0.5
        video.write_video(folder / "stripes.mp4", stripes, frames_per_second=8)
        (folder / "metadata.csv").write_text("video,prompt\nstripes.mp4,stripes\n", encoding="utf-8")
        stack.upload_folder(folder, "faceless")


@pytest.fixture(scope="module")
def endings(stack: Stack) -> dict[str, dict[str, Any]]:
    """The last status of each failing job."""
    upload_faceless_dataset(stack)
    stack.make_credentials("wrong-credentials", "nobody", "wrong-secret-4711")
    for name, changes in CASES.items():
        manifest = read_manifest(stack.storage_spec())
        spec = manifest["spec"]
        for field, value in changes.items():
            spec[field] = {**spec[field], **value} if isinstance(value, dict) else value
        manifest["metadata"]["name"] = name
        spec["nodes"] = 1
        spec["output"] = f"s3://rewardfl/results/{name}/"
        stack.apply(manifest)
    return {name: stack.finish(name, JOB_TIMEOUT_SECONDS) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_cannot_work_fails_with_its_reason_and_remedy(endings: dict[str, dict[str, Any]], name: str) -> None:
    reason, remedy = EXPECTED[name]
    status = endings[name]
    failed = next(condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert (status["phase"], failed["status"], failed["reason"]) == ("Failed", "True", reason), json.dumps(status, indent=1)
    assert remedy in failed["message"]


@pytest.mark.parametrize("name", CASES)
def test_a_job_that_cannot_work_is_not_tried_again(stack: Stack, endings: dict[str, dict[str, Any]], name: str) -> None:
    pods = stack.cluster.kubectl("get", "pods", "-l", f"rewardfl.io/job-name={name}", "-o", "name").split()
    assert endings[name]["restarts"] == 0
    assert len(pods) <= 1


def test_no_secret_is_shown_anywhere(stack: Stack, endings: dict[str, dict[str, Any]]) -> None:
    logs = stack.cluster.kubectl("logs", "-l", "rewardfl.io/job-name=wrong-credentials", "-c", "stage", "--tail=-1")
    events = stack.cluster.kubectl("get", "events", "-o", "json")
    shown = logs + events + json.dumps(endings)
    assert logs
    assert "wrong-secret-4711" not in shown
    assert stack.storage.secret_key not in shown
