"""Staging when servers, networks, disks, keys and other people misbehave; the S3 server is real, a proxy spoils its answers."""

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.staging.part import RANGE_BYTES
from rewardfl_trainer.staging.stage import stage
from tests.integration.fault_proxy import Exchange, FaultProxy, fault_proxy
from tests.integration.staging.buckets import (
    LOW,
    SHARD_BYTES,
    VAE,
    Bucket,
    configuration,
    content_at,
    failure_of,
    message_left,
    put_in_parts,
    run_stage,
    wait_for,
    whole_files,
)


def test_a_server_that_is_busy_for_a_while_is_asked_again(tmp_path: Path, bucket: Bucket) -> None:
    refused: list[str] = []

    def busy_at_first(exchange: Exchange) -> None:
        if exchange.key not in refused:
            refused.append(exchange.key)
            exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(busy_at_first)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        local = stage(config)

    assert len(refused) > 5
    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path, bucket: Bucket) -> None:
    def busy(exchange: Exchange) -> None:
        exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(busy)
        error = failure_of(configuration(tmp_path, bucket, proxy.endpoint))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)


@pytest.mark.parametrize("resets", [False, True])
def test_an_answer_that_is_cut_off_is_continued_where_it_broke(tmp_path: Path, bucket: Bucket, resets: bool) -> None:
    bucket.put(LOW, random.Random(1).randbytes(SHARD_BYTES))
    cuts = iter([500_000, 0, 100_000])

    def cut(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == LOW:
            exchange.cut_after, exchange.resets = next(cuts, None), resets

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(cut)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        local = stage(config)
        ranges = [exchange.headers["range"] for exchange in proxy.contents() if exchange.key == LOW]

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]
    assert len(ranges) == 6
    assert len(set(ranges)) == 5, "a range that broke off is not read again from its beginning"


def _replace_on_read(bucket: Bucket, times: int) -> Callable[[Exchange], None]:
    """Replace the object, with other content of the same size, each time a range in its middle is asked for."""
    left = iter(range(times))

    def rule(exchange: Exchange) -> None:
        in_the_middle = not exchange.headers.get("range", "bytes=0-").startswith("bytes=0-")
        if exchange.is_content and exchange.key == LOW and in_the_middle and next(left, None) is not None:
            put_in_parts(bucket, random.Random(time.monotonic_ns()).randbytes(SHARD_BYTES))

    return rule


def test_an_object_replaced_while_it_downloads_is_never_a_mixture(tmp_path: Path, bucket: Bucket) -> None:
    put_in_parts(bucket, random.Random(2).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(_replace_on_read(bucket, 1))
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_an_object_that_keeps_changing_fails_the_stage(tmp_path: Path, bucket: Bucket) -> None:
    put_in_parts(bucket, random.Random(3).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(_replace_on_read(bucket, 1000))
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        error = failure_of(config)

    assert (error.reason, error.exit_code) == (Reason.STAGED_FILE_CORRUPT, 74)
    assert f"training.model_paths[0]=s3://{bucket.name}/{LOW}" in error.message
    assert Path(LOW).name not in whole_files(config)


@pytest.mark.parametrize(
    "evil", ["../../etc/cron.d/x", "/absolute", "a/../../../b", "a//b", "a/./b", "nul%00x", "line%0Abreak", "x" * 256]
)
def test_a_key_that_is_no_path_of_a_folder_is_refused(tmp_path: Path, bucket: Bucket, evil: str) -> None:
    bucket.put("faces/videos/placeholder.mp4", b"content")

    def rename(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b"videos/placeholder.mp4", evil.encode())

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(rename)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        error = failure_of(config)

    assert (error.reason, error.exit_code) == (Reason.UNSAFE_PATH, 65)
    assert f"dataset=s3://{bucket.name}/faces/" in error.message
    assert whole_files(config) == set()


def test_keys_that_differ_only_by_case_are_refused(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("faces/Videos/a.mp4", b"1")

    error = failure_of(configuration(tmp_path, bucket))

    assert error.reason is Reason.UNSAFE_PATH
    assert "faces/videos" in error.message
    assert "faces/Videos" in error.message


@pytest.mark.parametrize("where", ["blobs", "views", ".rewardfl", "file"])
def test_a_symbolic_link_in_the_cache_is_refused_and_not_followed(tmp_path: Path, bucket: Bucket, where: str) -> None:
    config = configuration(tmp_path, bucket)
    outside, cache = tmp_path / "outside", Path(config.cache_dir)
    outside.mkdir()
    link = cache / where
    if where == "file":
        link = Path(stage(config)[f"s3://{bucket.name}/{VAE}"])
        link.unlink()
        outside = outside / "file"
        outside.write_bytes(b"not to be touched")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)

    error = failure_of(config)

    assert error.reason is Reason.UNSAFE_PATH
    assert "symbolic link" in error.message
    assert outside.read_bytes() == b"not to be touched" if where == "file" else not list(outside.iterdir())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, bytes(SHARD_BYTES))
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    config = configuration(tmp_path, bucket)
    Path(config.cache_dir).mkdir()

    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, config.cache_dir)
        with run_stage(config, tmp_path, *prefix) as process:
            log = str(process.communicate(timeout=60)[1])
        contents = proxy.contents()

    message = message_left(tmp_path)
    assert (message.reason, process.returncode) == (Reason.DISK_TOO_SMALL, 74), log
    needed, free = (int(word) for word in message.message.split() if word.isdigit())
    assert needed >= SHARD_BYTES > 8 * 2**20 >= free
    assert contents == []


def test_two_stagers_of_one_cache_fetch_each_file_once(tmp_path: Path, bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        processes = [run_stage(config.copy_with(work_dir=str(tmp_path / name)), tmp_path) for name in ("one", "two")]
        logs = [str(process.communicate(timeout=60)[1]) for process in processes]
        keys = [exchange.key for exchange in proxy.contents()]

    assert [process.returncode for process in processes] == [0, 0], logs
    assert len(keys) == len(set(keys)) > 10
    assert (tmp_path / "one/staged.json").read_text() == (tmp_path / "two/staged.json").read_text()


@pytest.fixture
def slow(bucket: Bucket) -> Iterator[FaultProxy]:
    """A server that holds the big shard's ranges back until `before` is emptied."""
    bucket.put(LOW, random.Random(4).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:

        def hold(exchange: Exchange) -> None:
            while exchange.is_content and exchange.key == LOW and "bytes=0-" not in exchange.headers["range"] and proxy.before:
                time.sleep(0.05)

        proxy.before.append(hold)
        yield proxy
        proxy.before.clear()


def test_sigterm_ends_a_stage_at_once_with_143(tmp_path: Path, bucket: Bucket, slow: FaultProxy) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    with run_stage(config, tmp_path) as process:
        wait_for(lambda: [e for e in slow.contents() if e.key == LOW], "the shard is being fetched")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)

    assert process.returncode == ExitCode.TERMINATED
    assert message_left(tmp_path).reason is Reason.TERMINATED
    assert time.monotonic() - began < 10, "a read that hangs must not hold up the end"
    assert not (tmp_path / "work/staged.json").exists()


def _ranges_there(config: TrainerConfig) -> set[str]:
    """The numbers of the ranges that the map of the one unfinished file tells of."""
    maps = list((Path(config.cache_dir) / ".rewardfl/parts").glob("*.map"))
    return {line for line in maps[0].read_text().splitlines() if line.isdigit()} if maps else set()


def _kill_in_the_middle(config: TrainerConfig, tmp_path: Path) -> None:
    """Stage, and kill the stager when it has brought the first range of the one file."""
    with run_stage(config, tmp_path) as process:
        wait_for(lambda: "0" in _ranges_there(config), "the first range is there")
        process.kill()
        process.communicate(timeout=20)


def test_a_stage_that_was_killed_leaves_no_half_file_and_the_next_one_fetches_the_rest(
    tmp_path: Path, bucket: Bucket, slow: FaultProxy
) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    _kill_in_the_middle(config, tmp_path)
    assert Path(LOW).name not in whole_files(config)
    slow.before.clear()
    slow.seen.clear()

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]
    assert not list((Path(config.cache_dir) / ".rewardfl/parts").iterdir())
    ranges = {exchange.headers["range"] for exchange in slow.contents() if exchange.key == LOW}
    assert ranges == {"bytes=8388608-16777215", "bytes=16777216-17825791"}


def test_a_stage_that_is_killed_again_and_again_fetches_only_what_is_missing(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(5).randbytes(6 * RANGE_BYTES + 1))
    finishing = threading.Event()

    def slowly(exchange: Exchange) -> None:
        if exchange.is_content and exchange.headers.get("range", "").startswith(f"bytes={6 * RANGE_BYTES}-"):
            finishing.wait(30)
        elif exchange.is_content:
            time.sleep(0.2 * random.random())

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(slowly)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        for ranges in (1, 3, 5):
            with run_stage(config, tmp_path) as process:
                wait_for(lambda least=ranges: len(_ranges_there(config)) >= least, "ranges are there")  # type: ignore[misc]
                process.kill()
                process.communicate(timeout=20)
        there = _ranges_there(config)
        finishing.set()
        proxy.seen.clear()
        local = stage(config)
        asked = {exchange.headers["range"].partition("-")[0] for exchange in proxy.contents() if exchange.key == LOW}

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]
    assert asked == {f"bytes={index * RANGE_BYTES}" for index in range(7) if str(index) not in there}


def test_what_was_fetched_before_a_replacement_is_not_gone_on_with(tmp_path: Path, bucket: Bucket, slow: FaultProxy) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    _kill_in_the_middle(config, tmp_path)
    slow.before.clear()
    bucket.put(LOW, random.Random(6).randbytes(SHARD_BYTES))

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_a_part_that_was_damaged_on_the_disk_is_noticed_by_its_checksum(tmp_path: Path, bucket: Bucket, slow: FaultProxy) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    _kill_in_the_middle(config, tmp_path)
    slow.before.clear()
    (range_map,) = (Path(config.cache_dir) / ".rewardfl/parts").glob("*.map")
    with range_map.with_suffix("").open("r+b") as file:
        file.write(b"damage")

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_a_disk_that_becomes_full_meanwhile_fails_with_the_numbers_and_leaves_its_space(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(7).randbytes(SHARD_BYTES))
    mount = 'mount -t tmpfs -o size=24m tmpfs "$0" && exec "$@"'
    Path(configuration(tmp_path, bucket).cache_dir).mkdir()
    release = threading.Event()

    def hold(exchange: Exchange) -> None:
        if exchange.is_content:
            release.wait(30)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(hold)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, config.cache_dir)
        with run_stage(config, tmp_path, *prefix) as process:
            wait_for(proxy.contents, "files are being fetched")
            # another program takes what was free when the stage began; it sees the mount through the process
            other = Path(f"/proc/{process.pid}/root{config.cache_dir}/other")
            with contextlib.suppress(OSError), other.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(2**16))
            release.set()
            log = str(process.communicate(timeout=60)[1])

    message = message_left(tmp_path)
    assert (message.reason, process.returncode) == (Reason.DISK_TOO_SMALL, 74), log
    assert "are needed and" in message.message
