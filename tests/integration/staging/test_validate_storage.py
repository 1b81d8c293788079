"""`rewardfl validate --storage` against a real S3 server: what is there, what is missing, and who is refused."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rewardfl_api.cli import app
from rewardfl_api.errors import ExitCode
from tests.integration.operator_harness import manifest
from tests.integration.staging.buckets import Bucket

pytestmark = pytest.mark.slow


def job(bucket: Bucket, **spec: Any) -> dict[str, Any]:
    root = f"s3://{bucket.name}"
    training = {"modelPaths": [f"{root}/Wan-AI/"], "rewardModelPath": f"{root}/antelopev2/", **spec.pop("training", {})}
    places = {"dataset": f"{root}/faces/", "output": f"{root}/results/", "storage": {"endpoint": bucket.endpoint}}
    return manifest("face", **{**places, **spec}, training=training)


def validate(body: dict[str, Any]) -> Result:
    options = ["validate", "-f", "-", "--storage", "--no-estimate"]
    return CliRunner().invoke(app, options, input=json.dumps(body), prog_name="rewardfl")


def test_what_is_there_is_named_one_line_each(bucket: Bucket) -> None:
    bucket.put("Wan-AI/model.safetensors", b"weights")
    answer = validate(job(bucket))
    assert answer.exit_code == 0, answer.output
    assert [line.strip().rpartition(": ")[2] for line in answer.stdout.splitlines()[1:]] == [
        "asked with the credentials of this machine (env)",
        f"metadata.csv is there ({len(bucket.content['faces/metadata.csv'])} bytes)",
        "the bucket exists",
        "found",
        "found",
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"dataset": "s3://no-such-bucket/faces/"}, "spec.dataset=s3://no-such-bucket/faces/: the bucket does not exist at"),
        ({"output": "s3://no-such-bucket/out/"}, "spec.output=s3://no-such-bucket/out/: the bucket does not exist at"),
        (
            {"training": {"rewardModelPath": "s3://{name}/none/"}},
            "spec.training.rewardModelPath=s3://{name}/none/: there is nothing",
        ),
        ({"dataset": "s3://{name}/antelopev2/"}, "spec.dataset=s3://{name}/antelopev2/: holds no metadata.csv"),
    ],
)
def test_what_is_missing_is_named_with_its_field(bucket: Bucket, spec: dict[str, Any], expected: str) -> None:
    bucket.put("Wan-AI/model.safetensors", b"weights")
    answer = validate(job(bucket, **json.loads(json.dumps(spec).replace("{name}", bucket.name))))
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    (line,) = answer.stdout.splitlines()[:1]
    assert expected.replace("{name}", bucket.name) in line
    assert "1 problem in 1 of 1" in answer.stderr


def test_wrong_credentials_are_one_line_and_not_shown(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-4711")
    answer = validate(job(bucket))
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert "refuses access" in answer.stdout
    assert "Set AWS_ACCESS_KEY_ID" in answer.stdout
    assert len([line for line in answer.stdout.splitlines() if "refuses access" in line]) == 1
    assert "wrong-secret-4711" not in answer.output


def test_an_endpoint_that_does_not_answer_is_one_line(bucket: Bucket) -> None:
    answer = validate(job(bucket, storage={"endpoint": "http://127.0.0.1:1"}))
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert "http://127.0.0.1:1 cannot be used" in answer.stdout
    assert "Check storage.endpoint" in answer.stdout


def test_no_credentials_at_all_are_said_before_anything_is_asked(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    answer = validate(job(bucket))
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert "no credentials on this machine to ask with" in answer.stdout
