"""Checkpoints in a real bucket: uploaded while training goes on, kept, and found by a new pod."""

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.checkpoint import Saver
from rewardfl_trainer.order import Position
from rewardfl_trainer.resume import find
from rewardfl_trainer.storage import Storage
from rewardfl_trainer.uploads import Uploads
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.staging.buckets import Bucket, configuration
from tests.unit.checkpoints import saver, train_a_step

pytestmark = pytest.mark.usefixtures("process_group")

DELAY_SECONDS = 0.3


def bucket_saver(tmp_path: Path, bucket: Bucket, endpoint: str | None = None) -> Saver:
    """Return a saver whose output is the bucket."""
    config = configuration(tmp_path, bucket, endpoint)
    storage, made = Storage.from_config(config), saver(tmp_path)
    identity = made.identity.copy_with(output=config.output)
    uploads = Uploads(storage, config.output, keep=2, retry_seconds=0.2, patience_seconds=1.0)
    return replace(made, storage=storage, output=config.output, identity=identity, uploads=uploads)


def save(made: Saver, step: int) -> float:
    """Save after a step; return the seconds that training stood still."""
    train_a_step(made)
    started = time.monotonic()
    made.save(Position(step=step))
    return time.monotonic() - started


def keys(bucket: Bucket) -> list[str]:
    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="results/checkpoints/").get("Contents", [])
    return sorted(entry["Key"].removeprefix("results/checkpoints/") for entry in listed)


def test_a_new_pod_goes_on_from_the_bucket_in_which_the_newest_are_kept(tmp_path: Path, bucket: Bucket) -> None:
    made = bucket_saver(tmp_path, bucket)
    for step in (1, 2, 3):
        save(made, step)
        assert made.uploads.finish()
    files = ["lora.safetensors", "manifest.json", "state-00001.safetensors", "state.json"]
    assert keys(bucket) == [f"step-{step}/{name}" for step in (2, 3) for name in files]
    shutil.rmtree(made.folder)
    found = find(made.storage, made.folder, made.identity)
    assert found is not None
    assert (found.position.step, found.uri) == (3, f"s3://{bucket.name}/results/checkpoints/step-3")


def test_an_object_that_was_cut_short_in_the_bucket_is_passed_over(tmp_path: Path, bucket: Bucket) -> None:
    made = bucket_saver(tmp_path, bucket)
    for step in (1, 2):
        save(made, step)
        assert made.uploads.finish()
    bucket.put("results/checkpoints/step-2/state.json", b"{}")
    shutil.rmtree(made.folder)
    found = find(made.storage, made.folder, made.identity)
    assert found is not None
    assert found.position.step == 1


def test_a_slow_bucket_does_not_stall_training_and_a_broken_one_does_not_stop_it(
    tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def slow_or_broken(exchange: Exchange) -> None:
        time.sleep(DELAY_SECONDS)
        if broken and exchange.method == "PUT":
            exchange.status = 503

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(slow_or_broken)
        made = bucket_saver(tmp_path, bucket, proxy.endpoint)
        stalls = [save(made, 1), save(made, 2)]
        while "could not be uploaded" not in caplog.text:
            time.sleep(0.05)
        broken = False
        started = time.monotonic()
        assert made.uploads.finish()
        upload_seconds = time.monotonic() - started
    assert max(stalls) < upload_seconds
    assert "step-2/manifest.json" in keys(bucket)


def test_storage_that_cannot_be_read_is_an_error_and_not_a_run_from_the_start(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(exchange: Exchange) -> None:
        exchange.status = 503

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(unavailable)
        made = bucket_saver(tmp_path, bucket, proxy.endpoint)
        with pytest.raises(RewardFLError) as caught:
            find(made.storage, made.folder, made.identity)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORAGE_UNAVAILABLE, ExitCode.UNAVAILABLE)


def test_final_weights_that_cannot_be_uploaded_end_the_run_with_69_and_stay_on_the_disk(tmp_path: Path, bucket: Bucket) -> None:
    def unavailable(exchange: Exchange) -> None:
        exchange.status = 503

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(unavailable)
        made = bucket_saver(tmp_path, bucket, proxy.endpoint)
        with pytest.raises(RewardFLError) as caught:
            made.save_final(1)
    assert caught.value.exit_code is ExitCode.UNAVAILABLE
    assert (made.folder / "lora.safetensors").is_file()


@pytest.mark.parametrize(("status", "said"), [(503, "cannot be used"), (403, "refuses access")])
def test_final_weights_wait_for_storage_that_is_away_or_refuses_for_a_while(
    tmp_path: Path, bucket: Bucket, status: int, said: str
) -> None:
    told: list[str] = []

    def until_it_was_told(exchange: Exchange) -> None:
        if not told:
            exchange.status = status

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(until_it_was_told)
        made = bucket_saver(tmp_path, bucket, proxy.endpoint)
        made.uploads.tell = told.append
        uris = made.save_final(1)
    assert uris[0] == f"s3://{bucket.name}/results/lora.safetensors"
    assert [said in text for text in told] == [True]
    stored = bucket.client.get_object(Bucket=bucket.name, Key="results/lora.safetensors")["Body"].read()
    assert stored == (made.folder / "lora.safetensors").read_bytes()
