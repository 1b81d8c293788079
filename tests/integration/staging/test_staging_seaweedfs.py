"""Staging from a real S3 server: what is fetched, what is not, and what is said when something is missing or refused."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import ExitCode, Reason
from rewardfl_trainer.staging import localize
from rewardfl_trainer.staging.stage import stage
from tests.cluster import SeaweedFS
from tests.integration.fault_proxy import fault_proxy
from tests.integration.staging.buckets import (
    HIGH,
    LOW,
    MODEL,
    TEXT_ENCODER,
    VAE,
    Bucket,
    configuration,
    content_at,
    failure_of,
    message_left,
    names_in,
    run_stage,
    whole_files,
)


def test_everything_a_job_names_is_staged_and_nothing_else(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)

    stage(config)
    local = localize(config)

    assert content_at(f"{local.dataset}/metadata.csv") == bucket.content["faces/metadata.csv"]
    assert content_at(f"{local.dataset}/videos/one two ü.mp4") == bucket.content["faces/videos/one two ü.mp4"]
    assert names_in(local.training.reward_model_path) == [
        "glintr100.onnx",
        "glintr100.onnx.data",
        "scrfd_10g_bnkps.onnx",
    ]
    assert names_in(local.training.tokenizer_path) == ["tokenizer.json", "tokenizer_config.json"]
    assert local.training.model_paths is not None
    models = [entry.split(",") for entry in local.training.model_paths]
    assert [[content_at(part) for part in parts] for parts in models] == [
        [bucket.content[key] for key in HIGH],
        [bucket.content[LOW]],
        [bucket.content[TEXT_ENCODER]],
        [bucket.content[VAE]],
    ]
    assert content_at(f"{models[0][0]}.config.json") == bucket.content[f"{HIGH[0]}.config.json"]
    assert not {"2d106det.onnx", "README.md"} & whole_files(config)


def test_a_second_start_reads_no_content(tmp_path: Path, bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        stage(config)
        assert proxy.contents()
        proxy.seen.clear()

        stage(config)

        assert proxy.seen
        assert proxy.contents() == []


def test_an_object_that_was_replaced_is_fetched_again(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    stage(config)
    bucket.put(VAE, b"another")

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == b"another"


def test_a_cached_file_that_was_tampered_with_is_fetched_again(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    vae = Path(stage(config)[f"s3://{bucket.name}/{VAE}"])
    vae.write_bytes(b"x" * len(bucket.content[VAE]))

    stage(config)

    assert vae.read_bytes() == bucket.content[VAE]


def test_models_may_be_listed_by_a_json_file_with_relative_paths(tmp_path: Path, bucket: Bucket) -> None:
    listed = [
        [key.removeprefix(f"{MODEL}/") for key in HIGH],
        "low_noise_model/",
        f"s3://{bucket.name}/{TEXT_ENCODER}",
        "*VAE.pth",
    ]
    bucket.put(f"{MODEL}/wan22_paths.json", json.dumps(listed).encode())
    config = configuration(tmp_path, bucket, training={"model_paths": [f"s3://{bucket.name}/{MODEL}/wan22_paths.json"]})

    stage(config)

    paths = localize(config).training.model_paths
    assert paths is not None
    assert [[Path(part).name for part in entry.split(",")] for entry in paths] == [
        [Path(key).name for key in HIGH],
        [Path(LOW).name],
        [Path(TEXT_ENCODER).name],
        [Path(VAE).name],
    ]


def test_a_pattern_means_the_files_that_match_it_now_and_not_those_of_an_earlier_start(tmp_path: Path, bucket: Bucket) -> None:
    pattern = f"s3://{bucket.name}/{MODEL}/high_noise_model/*.safetensors"
    config = configuration(tmp_path, bucket, training={"model_paths": [pattern]})
    assert len(stage(config)[pattern].split(",")) == 2
    bucket.client.delete_object(Bucket=bucket.name, Key=HIGH[1])

    assert [Path(path).name for path in stage(config)[pattern].split(",")] == [Path(HIGH[0]).name]


@pytest.mark.parametrize(
    ("changes", "reason", "exit_code", "named"),
    [
        ({"dataset": "s3://nope-nope/faces/"}, Reason.BUCKET_NOT_FOUND, 66, "dataset=s3://nope-nope/faces/"),
        ({"dataset": "s3://{bucket}/nope/"}, Reason.OBJECT_NOT_FOUND, 66, "dataset=s3://{bucket}/nope/"),
        ({"dataset": "s3://{bucket}/faces/metadata.csv"}, Reason.OBJECT_NOT_FOUND, 66, "nothing is there"),
        ({"dataset": "s3://{bucket}/google/"}, Reason.OBJECT_NOT_FOUND, 66, "metadata.csv"),
        ({"training": {"model_paths": ["s3://{bucket}/no.pth"]}}, Reason.OBJECT_NOT_FOUND, 66, "training.model_paths[0]=s3://{bucket}/no.pth"),
        ({"training": {"model_paths": ["s3://nope-nope/no.pth"]}}, Reason.BUCKET_NOT_FOUND, 66, "training.model_paths[0]=s3://nope-nope/no.pth"),
        ({"training": {"model_paths": ["s3://{bucket}/no.json"]}}, Reason.OBJECT_NOT_FOUND, 66, "training.model_paths=s3://{bucket}/no.json"),
        ({"training": {"model_paths": ["s3://{bucket}/faces/*.pth"]}}, Reason.OBJECT_NOT_FOUND, 66, "no weights match"),
        ({"training": {"reward_model_path": "s3://{bucket}/faces"}}, Reason.OBJECT_NOT_FOUND, 66, "glintr100.onnx"),
        ({"training": {"tokenizer_path": "/nowhere/umt5"}}, Reason.MODEL_NOT_FOUND, 66, "training.tokenizer_path=/nowhere/umt5"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_parameter(
    tmp_path: Path, bucket: Bucket, changes: dict[str, Any], reason: Reason, exit_code: int, named: str
) -> None:
    changes = json.loads(json.dumps(changes).replace("{bucket}", bucket.name))

    error = failure_of(configuration(tmp_path, bucket, **changes))

    assert (error.reason, error.exit_code) == (reason, exit_code)
    assert named.replace("{bucket}", bucket.name) in error.message
    assert error.hint


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_fail_for_good_and_are_not_shown(
    tmp_path: Path, bucket: Bucket, server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "this-is-a-wrong-credential")

    with run_stage(configuration(tmp_path, bucket), tmp_path) as process:
        log = str(process.communicate(timeout=60)[1])

    message = message_left(tmp_path)
    assert process.returncode == message.exit_code == ExitCode.BAD_CONFIGURATION
    assert message.reason is Reason.STORAGE_ACCESS_DENIED
    assert f"dataset=s3://{bucket.name}/faces/" in message.message
    for secret in ("this-is-a-wrong-credential", server.secret_key, server.access_key):
        assert secret not in log + message.message + message.hint


def test_no_credentials_at_all_fail_for_good(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

    error = failure_of(configuration(tmp_path, bucket))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_ACCESS_DENIED, 78)
    assert "NoCredentialsError" in error.message


def test_an_endpoint_that_nobody_listens_on_is_given_up_soon(tmp_path: Path, bucket: Bucket) -> None:
    began = time.monotonic()

    error = failure_of(configuration(tmp_path, bucket, "http://127.0.0.1:9"))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)
    assert "http://127.0.0.1:9" in error.message
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "2852039166", "[::ffff:169.254.169.254]"])
def test_a_link_local_endpoint_is_refused_before_anything_is_sent(tmp_path: Path, bucket: Bucket, host: str) -> None:
    error = failure_of(configuration(tmp_path, bucket, f"http://{host}/"))

    assert (error.reason, error.exit_code) == (Reason.BAD_CONFIGURATION, 78)
    assert "link-local" in error.message


def test_empty_objects_and_folder_markers_do_no_harm(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("faces/empty.txt", b"")
    bucket.client.put_object(Bucket=bucket.name, Key="faces/marker/", Body=b"")

    dataset = Path(stage(configuration(tmp_path, bucket))[f"s3://{bucket.name}/faces/"])

    assert (dataset / "empty.txt").read_bytes() == b""
    assert not (dataset / "marker").is_file()
