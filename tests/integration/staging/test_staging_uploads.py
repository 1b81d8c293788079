"""Results written to a real S3 server, also over a network that fails, damages and stalls, and by a process that is killed."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_trainer.s3 import TIMEOUT_VARIABLE
from rewardfl_trainer.storage import MARKER_NAME, Storage
from rewardfl_trainer.uploads import abort_interrupted
from tests.integration.fault_proxy import Exchange, FaultProxy, fault_proxy
from tests.integration.staging.buckets import (
    SHARD_BYTES,
    Bucket,
    configuration,
    wait_for,
)

LORA = "results/lora.safetensors"


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


def is_part(exchange: Exchange, number: int) -> bool:
    """Whether this sends the part of that number."""
    return exchange.method == "PUT" and f"partNumber={number}" in exchange.path


def fail(exchange: Exchange) -> None:
    exchange.status = 503


def drop(exchange: Exchange) -> None:
    exchange.drops = True


def stall(exchange: Exchange) -> None:
    time.sleep(3)
    exchange.drops = True


def refuse(exchange: Exchange) -> None:
    exchange.status = 403


def damage(exchange: Exchange) -> None:
    exchange.sent = exchange.sent[:-1] + bytes([exchange.sent[-1] ^ 1])


def large_file(folder: Path) -> Path:
    """Write a file that is uploaded in two parts."""
    path = folder / "lora.safetensors"
    path.write_bytes(random.Random(7).randbytes(SHARD_BYTES))
    return path


def unfinished(bucket: Bucket) -> list[str]:
    return [upload["Key"] for upload in bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])]


def stored(bucket: Bucket, key: str = LORA) -> bytes:
    body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return body


@pytest.mark.parametrize("fault", [fail, drop, stall, damage])
def test_a_part_that_fails_once_is_sent_again_and_the_object_is_whole(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Exchange], None]
) -> None:
    if fault is stall:
        monkeypatch.setenv(TIMEOUT_VARIABLE, "1")
    local = large_file(tmp_path)

    def second_part_once(exchange: Exchange) -> None:
        if is_part(exchange, 2) and sum(is_part(seen, 2) for seen in proxy.seen) == 1:
            fault(exchange)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(second_part_once)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        Storage.from_config(config).upload_file(local, f"{config.output}lora.safetensors")

    sent = sum(is_part(exchange, 2) for exchange in proxy.seen)
    assert sent == 2 or (fault is stall and sent > 2), "on a machine that is busy a second may pass once more"
    assert stored(bucket) == local.read_bytes()


def test_a_small_file_that_arrives_damaged_is_sent_again(tmp_path: Path, bucket: Bucket) -> None:
    local = tmp_path / "metrics.jsonl"
    local.write_bytes(b"{}\n" * 500)

    def first_time(exchange: Exchange) -> None:
        if exchange.method == "PUT" and sum(seen.method == "PUT" for seen in proxy.seen) == 1:
            damage(exchange)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(first_time)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        Storage.from_config(config).upload_file(local, f"{config.output}metrics.jsonl")

    assert stored(bucket, "results/metrics.jsonl") == local.read_bytes()


@pytest.mark.parametrize(
    ("fault", "reason", "code"),
    [(damage, Reason.STORAGE_UNAVAILABLE, 69), (refuse, Reason.STORAGE_ACCESS_DENIED, 78)],
    ids=["always damaged", "refused in the middle"],
)
def test_an_upload_that_cannot_be_finished_changes_nothing_there_and_nothing_here(
    tmp_path: Path, bucket: Bucket, fault: Callable[[Exchange], None], reason: Reason, code: int
) -> None:
    bucket.put(LORA, b"earlier")
    local = large_file(tmp_path)
    content = local.read_bytes()

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(lambda exchange: fault(exchange) if is_part(exchange, 2) else None)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        with pytest.raises(RewardFLError) as caught:
            Storage.from_config(config).upload_file(local, f"{config.output}lora.safetensors")

    assert (caught.value.reason, caught.value.exit_code) == (reason, code)
    assert stored(bucket) == b"earlier"
    assert unfinished(bucket) == []
    assert local.read_bytes() == content


UPLOAD = """
import sys
from pathlib import Path
from rewardfl_trainer.storage import Storage
from rewardfl_api.spec import Storage as Spec
Storage(Spec(endpoint=sys.argv[1])).upload_file(Path(sys.argv[2]), sys.argv[3])
"""


def kill_in_the_middle(proxy: FaultProxy, local: Path, uri: str) -> None:
    """Upload in a process that is killed while its second part is on its way."""
    proxy.before.append(lambda exchange: time.sleep(2) if is_part(exchange, 2) else None)
    with subprocess.Popen([sys.executable, "-c", UPLOAD, proxy.endpoint, str(local), uri]) as process:
        wait_for(lambda: any(is_part(exchange, 2) for exchange in proxy.seen), "the second part is on its way")
        process.kill()
    proxy.before.clear()


def test_what_a_killed_process_left_in_the_bucket_is_removed_by_the_next_start_and_nothing_else(
    tmp_path: Path, bucket: Bucket
) -> None:
    bucket.put(LORA, b"earlier")
    for key in ("results/other-job/lora.safetensors", "results-of-others/lora.safetensors", "results/checkpoints/mine.bin"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    for key in ("results/checkpoints/step-7/state-00001.safetensors", "results/samples/after/0.mp4"):
        bucket.client.create_multipart_upload(Bucket=bucket.name, Key=key)
    config = configuration(tmp_path, bucket)
    with fault_proxy(bucket.endpoint) as proxy:
        kill_in_the_middle(proxy, large_file(tmp_path), f"{config.output}lora.safetensors")
        assert LORA in unfinished(bucket)
        removed = abort_interrupted(Storage.from_config(config), config.output)

    assert sorted(removed) == ["checkpoints/step-7/state-00001.safetensors", "lora.safetensors", "samples/after/0.mp4"]
    assert sorted(unfinished(bucket)) == [
        "results-of-others/lora.safetensors", "results/checkpoints/mine.bin", "results/other-job/lora.safetensors",
    ]  # fmt: skip
    assert stored(bucket) == b"earlier"


@pytest.mark.parametrize("status", [403, 501, 503])
def test_a_service_that_does_not_list_uploads_stops_nothing(tmp_path: Path, bucket: Bucket, status: int) -> None:
    def refuse_listing(exchange: Exchange) -> None:
        if exchange.method == "GET" and "uploads" in exchange.path:
            exchange.status = status

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(refuse_listing)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        assert abort_interrupted(Storage.from_config(config), config.output) == []
    assert any("uploads" in exchange.path for exchange in proxy.seen)


def test_a_local_output_has_no_unfinished_uploads(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket, output=str(tmp_path / "results"))
    assert abort_interrupted(Storage.from_config(config), config.output) == []
