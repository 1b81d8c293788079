"""Results written to a real S3 server."""

import random
from pathlib import Path

import pytest

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_trainer.storage import MARKER_NAME, Storage
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.staging.buckets import (
    SHARD_BYTES,
    Bucket,
    configuration,
)


def test_results_are_uploaded_whole_large_ones_in_parts(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    results = tmp_path / "results"
    (results / "samples").mkdir(parents=True)
    (results / "lora.safetensors").write_bytes(random.Random(5).randbytes(SHARD_BYTES))
    (results / "samples/ü 1.mp4").write_bytes(b"video")

    uris = Storage.from_config(config).upload_folder(results, config.output)

    assert uris == [f"s3://{bucket.name}/results/lora.safetensors", f"s3://{bucket.name}/results/samples/ü 1.mp4"]
    for name in ("lora.safetensors", "samples/ü 1.mp4"):
        body = bucket.client.get_object(Bucket=bucket.name, Key=f"results/{name}")["Body"].read()
        assert body == (results / name).read_bytes()


def test_an_upload_that_breaks_off_leaves_the_earlier_object_and_no_parts(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("results/lora.safetensors", b"earlier")
    local = tmp_path / "lora.safetensors"
    local.write_bytes(bytes(SHARD_BYTES))

    def break_second_part(exchange: Exchange) -> None:
        if exchange.method == "PUT" and "partNumber=2" in exchange.path:
            exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(break_second_part)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        with pytest.raises(RewardFLError) as caught:
            Storage.from_config(config).upload_file(local, f"{config.output}lora.safetensors")

    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)
    assert bucket.client.get_object(Bucket=bucket.name, Key="results/lora.safetensors")["Body"].read() == b"earlier"
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
    assert local.stat().st_size == SHARD_BYTES


def test_the_output_is_checked_before_training_and_nothing_stays_there(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)

    Storage.from_config(config).check_writable(config.output)

    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="results/")
    assert MARKER_NAME not in str(listed.get("Contents", []))


def test_an_output_bucket_that_does_not_exist_is_named_and_not_made(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket, output="s3://nope-nope/results/")

    with pytest.raises(RewardFLError) as caught:
        Storage.from_config(config).check_writable(config.output)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.BUCKET_NOT_FOUND, 66)
    assert "output=s3://nope-nope/results/" in caught.value.message
    assert "nope-nope" not in str(bucket.client.list_buckets()["Buckets"])


def test_refused_credentials_fail_the_check_of_the_output(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "this-is-a-wrong-credential")
    config = configuration(tmp_path, bucket)

    with pytest.raises(RewardFLError) as caught:
        Storage.from_config(config).check_writable(config.output)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORAGE_ACCESS_DENIED, 78)
