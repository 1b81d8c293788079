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
from tests.integration.operator_harness import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

JOB_TIMEOUT_SECONDS = 600
HUNGRY_RANK = """
import os, sys, time
held = []
while os.environ["RANK"] == "0":
    held.append(b"x" * (16 << 20))
    print("holding", 16 * len(held), "MiB", file=sys.stderr, flush=True)
time.sleep(600)
"""


def limited(memory: str, **trainer: Any) -> dict[str, Any]:
    """A template with a memory limit, for a job that is not tried again."""
    container = {"name": "trainer", "resources": {"limits": {"memory": memory}}, **trainer}
    return {"runPolicy": {"backoffLimit": 0}, "template": {"spec": {"containers": [container]}}}


CASES: dict[str, dict[str, Any]] = {
    "missing-bucket": {"dataset": "s3://no-such-bucket/dataset/"},
    "wrong-credentials": {"storage": {"credentialsSecretName": "wrong-credentials"}},
    "no-face": {"dataset": "s3://rewardfl/faceless/"},
    "unknown-model": {"training": {"modelName": "wan9_9"}},
    "late-secret": {"dataset": "s3://no-such-bucket/dataset/", "storage": {"credentialsSecretName": "late-credentials"}},
    "out-of-memory": limited("600Mi"),
    "hungry-rank": limited("1200Mi", args=["--no-python", "python", "-c", HUNGRY_RANK]),
}
EXPECTED = {
    "missing-bucket": ("BucketNotFound", "s3://no-such-bucket/dataset/"),
    "wrong-credentials": ("StorageAccessDenied", "credentialsSecretName"),
    "no-face": ("NoFaceInFirstFrame", "use other videos"),
    "unknown-model": ("InvalidSpec", "wan2_2"),
    "late-secret": ("BucketNotFound", "s3://no-such-bucket/dataset/"),
    "out-of-memory": ("OutOfMemory", "memory limit"),
    "hungry-rank": ("OutOfMemory", "memory limit"),
}


UNREADABLE = {"name": "extra", "secret": {"secretName": "no-such-secret"}}
STUCK: dict[str, tuple[dict[str, Any], str]] = {
    "no-image": ({"image": "no-such-image:1"}, "ImagePullFailed"),
    "no-volume": (
        {
            "template": {
                "spec": {
                    "volumes": [UNREADABLE],
                    "containers": [{"name": "trainer", "volumeMounts": [{"name": "extra", "mountPath": "/extra"}]}],
                }
            }
        },
        "VolumeMissing",
    ),
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
            spec[field] = {**spec.get(field, {}), **value} if isinstance(value, dict) else value
        manifest["metadata"]["name"] = name
        spec["nodes"] = 1
        spec["output"] = f"s3://rewardfl/results/{name}/"
        stack.apply(manifest)
    for name, (changes, _) in STUCK.items():
        manifest = read_manifest(stack.storage_spec())
        manifest["metadata"]["name"] = name
        manifest["spec"] |= {"nodes": 1, **changes}
        stack.apply(manifest)
    until("the missing Secret is named", lambda: running_reason(stack, "late-secret") == "SecretMissing")
    stack.make_credentials("late-credentials", stack.storage.access_key, stack.storage.secret_key)
    return {name: stack.finish(name, JOB_TIMEOUT_SECONDS) for name in CASES}


def running_reason(stack: Stack, name: str) -> str:
    """Why the job runs or does not."""
    conditions = (stack.job(name).get("status") or {}).get("conditions", [])
    return next((str(item["reason"]) for item in conditions if item["type"] == "Running"), "")


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


@pytest.mark.parametrize(("name", "container"), [("missing-bucket", "stage"), ("no-face", "trainer")])
def test_the_status_has_the_place_of_the_failure_and_the_end_of_its_log(
    stack: Stack, endings: dict[str, dict[str, Any]], name: str, container: str
) -> None:
    failure = endings[name]["failure"]
    assert (failure["reason"], failure["container"]) == (EXPECTED[name][0], container)
    assert failure["pod"].startswith(f"{name}-0-")
    assert failure["reason"] in failure["logTail"].splitlines()[-1]
    assert failure["logTail"].splitlines()[-1] in stack.cluster.kubectl("logs", failure["pod"], "-c", container)
    assert "\x1b" not in failure["logTail"]


def test_a_rank_that_the_memory_limit_has_killed_is_named_with_the_last_that_it_said(endings: dict[str, dict[str, Any]]) -> None:
    failure = endings["hungry-rank"]["failure"]
    assert (failure["rank"], failure["exitCode"]) == (0, 1)
    assert "rank 0 was killed (SIGKILL): the pod needed more memory than its limit" in failure["message"]
    assert failure["logTail"].splitlines()[-1].startswith("holding ")


def test_what_keeps_a_node_from_starting_the_pods_is_named(stack: Stack, endings: dict[str, dict[str, Any]]) -> None:
    assert not endings.keys() & STUCK.keys()
    for name, (_, reason) in STUCK.items():
        until(f"{name} is named", lambda name=name, reason=reason: running_reason(stack, name) == reason, 180)
    stack.cluster.kubectl("delete", "rewardfljob", *STUCK, "--wait=false")


def test_no_secret_is_shown_anywhere(stack: Stack, endings: dict[str, dict[str, Any]]) -> None:
    logs = stack.cluster.kubectl("logs", "-l", "rewardfl.io/job-name=wrong-credentials", "-c", "stage", "--tail=-1")
    events = stack.cluster.kubectl("get", "events", "-o", "json")
    shown = logs + events + json.dumps(endings)
    assert logs
    assert "wrong-secret-4711" not in shown
    assert stack.storage.secret_key not in shown
