"""One cache, several jobs: real stagers (the program of the init container) before a real S3 server, counted by a proxy."""

import json
import os
import random
import sys
import threading
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.staging.cache import OWN_FOLDER, Cache
from rewardfl_trainer.staging.leases import kept
from rewardfl_trainer.staging.stage import stage
from tests.integration.cli.commands import rewardfl
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.staging.buckets import (
    HIGH,
    LOW,
    SHARD_BYTES,
    TEXT_ENCODER,
    VAE,
    Bucket,
    configuration,
    content_at,
    failure_of,
    message_left,
    run_stage,
    wait_for,
)


def job(config: TrainerConfig, tmp_path: Path, name: str, **changes: object) -> TrainerConfig:
    """Another job with the same cache: another name, another pod."""
    return config.copy_with(name=name, work_dir=str(tmp_path / "work" / name), **changes)


def blobs(config: TrainerConfig) -> set[str]:
    return {path.name for path in (Path(config.cache_dir) / "blobs").rglob("*") if path.is_file()}


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def test_of_several_stagers_of_one_cache_each_file_is_fetched_by_one(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(11).randbytes(SHARD_BYTES))
    arrived, barrier = threading.Event(), threading.Lock()

    def hold_the_first(exchange: Exchange) -> None:
        """Until all of them have looked at the bucket, the shard is held back: they all find it missing."""
        if exchange.is_content and exchange.key == LOW:
            with barrier:
                wait_for(
                    lambda: Counter(e.key for e in proxy.seen if e.method == "HEAD")[LOW] >= 3 or arrived.is_set(), "all look"
                )
                arrived.set()

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(hold_the_first)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        processes = [run_stage(job(config, tmp_path, f"job-{number}"), tmp_path) for number in range(3)]
        logs = [str(process.communicate(timeout=90)[1]) for process in processes]
        ranges = Counter((exchange.key, exchange.headers.get("range")) for exchange in proxy.contents())

    assert [process.returncode for process in processes] == [0] * 3, logs
    assert arrived.is_set()
    assert set(ranges.values()) == {1}
    staged = [(tmp_path / "work" / f"job-{number}" / "staged.json").read_text() for number in range(3)]
    assert len(set(staged)) == 1, "they share the views, too"
    assert content_at(json.loads(staged[0])[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_when_the_stager_that_fetches_is_killed_one_that_waits_goes_on(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(12).randbytes(SHARD_BYTES))
    released = threading.Event()

    def hold(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == LOW and not exchange.headers["range"].startswith("bytes=0-"):
            released.wait(60)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(hold)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        with run_stage(job(config, tmp_path, "first"), tmp_path) as first:
            wait_for(lambda: [e for e in proxy.contents() if e.key == LOW], "the first one fetches")
            with run_stage(job(config, tmp_path, "second"), tmp_path) as second:
                wait_for(lambda: list((Path(config.cache_dir) / ".rewardfl/leases").glob("*second*")), "the second one is there")
                first.kill()
                first.communicate(timeout=20)
                assert not (tmp_path / "work/second/staged.json").exists()
                released.set()
                log = second.communicate(timeout=60)[1]

    assert second.returncode == 0, log
    local = json.loads((tmp_path / "work/second/staged.json").read_text())
    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_another_job_of_another_pod_starts_warm_and_asks_for_metadata_only(tmp_path: Path, bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        first = stage(job(config, tmp_path, "first"))
        for number in range(30):
            bucket.put(f"copy/{number}.safetensors", bucket.content[HIGH[0]])
        proxy.seen.clear()

        second = stage(job(config, tmp_path, "second"))

        assert proxy.contents() == []
        assert {exchange.method for exchange in proxy.seen} == {"GET", "HEAD"}
        assert second == first
        assert len(proxy.seen) < 30, "what is asked for does not grow with the cache"


def test_what_one_job_stages_under_another_name_is_kept_once(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    stage(config)
    before = blobs(config)
    bucket.put("renamed/high-1.safetensors", bucket.content[HIGH[0]])

    renamed = f"s3://{bucket.name}/renamed/high-1.safetensors"
    local = stage(job(config, tmp_path, "second", training=config.training.copy_with(model_paths=[renamed])))

    assert blobs(config) == before
    assert content_at(local[renamed]) == bucket.content[HIGH[0]]


def test_a_job_keeps_its_files_while_the_next_one_stages_newer_ones_of_the_same_key(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    source, old = f"s3://{bucket.name}/{VAE}", bucket.content[VAE]
    first = stage(job(config, tmp_path, "first"))
    bucket.put(VAE, b"another vae")

    second = stage(job(config, tmp_path, "second"))

    assert (content_at(first[source]), content_at(second[source])) == (old, b"another vae")
    assert stage(job(config, tmp_path, "third")) == second


def test_room_is_made_by_removing_what_no_running_job_uses(tmp_path: Path, bucket: Bucket) -> None:
    old, new = random.Random(13).randbytes(300_000), random.Random(14).randbytes(300_000)
    bucket.put(LOW, old)
    models = {"model_paths": [f"s3://{bucket.name}/{LOW}"]}
    config = configuration(tmp_path, bucket, cache_max_size="500k", training=models)
    first = job(config, tmp_path, "first")
    stage(first)
    bucket.put(LOW, new)

    with kept(Path(first.work_dir)):
        error = failure_of(job(config, tmp_path, "second"))
        assert (error.reason, error.exit_code) == (Reason.DISK_TOO_SMALL, ExitCode.IO_ERROR)
        assert "cache.maxSize=500k (500000 bytes): 300000 bytes are to be fetched" in error.message
        assert digest(old) in blobs(config)

    local = stage(job(config, tmp_path, "third"))

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == new
    assert digest(old) not in blobs(config)


def test_a_job_that_never_fits_is_refused_before_anything_is_fetched(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, bytes(300_000))
    with fault_proxy(bucket.endpoint) as proxy:
        error = failure_of(configuration(tmp_path, bucket, proxy.endpoint, cache_max_size="200k"))
        assert proxy.contents() == []

    assert (error.reason, error.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)
    assert "cache.maxSize=200k: is 200000 bytes, and what the job names has 3" in error.message


def test_a_full_disk_is_emptied_of_what_nobody_uses_before_a_job_is_refused(tmp_path: Path, bucket: Bucket) -> None:
    """In a mount namespace with a disk of 8 MiB, on which an earlier job has left 6."""
    earlier, later = os.urandom(6 * 2**20), os.urandom(5 * 2**20)
    bucket.put(LOW, earlier)
    bucket.put(VAE, later)
    config = configuration(tmp_path, bucket, dataset=str(tmp_path))
    Path(config.cache_dir).mkdir()
    models = [config.training.copy_with(model_paths=[f"s3://{bucket.name}/{key}"]) for key in (LOW, VAE)]
    files = [tmp_path / "earlier.yaml", tmp_path / "later.yaml"]
    for file, training in zip(files, models, strict=True):
        file.write_text(job(config, tmp_path, file.stem, training=training).dump(), encoding="utf-8")
    mounted = 'mount -t tmpfs -o size=8m tmpfs "$0" && "$1" -m rewardfl_trainer.staging --config "$2"'
    script = f'{mounted} && rm -r "$0"/.rewardfl/leases/* && shift 2 && exec "$@"'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, config.cache_dir, sys.executable, str(files[0]))

    with run_stage(job(config, tmp_path, "later", training=models[1]), tmp_path, *prefix) as process:
        log = str(process.communicate(timeout=60)[1])

    assert process.returncode == 0, log
    assert "bytes that were not used for longest" in log


def test_a_volume_without_hard_links_gets_copies_and_the_log_says_so(tmp_path: Path, bucket: Bucket) -> None:
    """In a mount namespace in which the views lie on another volume than the contents: no link leads from one to the other."""
    config = configuration(tmp_path, bucket)
    (Path(config.cache_dir) / "views").mkdir(parents=True)
    mounted = 'mount -t tmpfs tmpfs "$0"/views && "$@" && "$@" && cp -a "$0"/views "$0"/seen'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", mounted, config.cache_dir)

    with run_stage(config, tmp_path, *prefix) as process:
        log = str(process.communicate(timeout=60)[1])

    assert process.returncode == 0, log
    assert log.count("bytes were copied, since the volume makes no hard links") == 7, (
        "once for each view, and only at the first start"
    )
    local = json.loads((Path(config.work_dir) / "staged.json").read_text())
    vae = Path(local[f"s3://{bucket.name}/{VAE}"].replace("/cache/views/", "/cache/seen/"))
    assert (vae.read_bytes(), vae.stat().st_nlink, vae.stat().st_mode & 0o777) == (bucket.content[VAE], 1, 0o444)


@pytest.fixture
def staged(tmp_path: Path, bucket: Bucket) -> TrainerConfig:
    """A cache that a job has filled which runs no more."""
    config = configuration(tmp_path, bucket)
    stage(config)
    with kept(Path(config.work_dir)):
        pass
    return config


def test_the_cache_is_listed_with_size_users_and_names(bucket: Bucket, staged: TrainerConfig) -> None:
    answer = json.loads(rewardfl("cache", "ls", "--dir", staged.cache_dir, "-o", "json").stdout)

    contents = {name: item for item in answer["items"] for name in item["names"]}
    vae = contents[f"s3://{bucket.name}/{VAE}"]
    assert (vae["name"], vae["bytes"], vae["usedBy"]) == (digest(bucket.content[VAE]), len(bucket.content[VAE]), [])
    assert 0 <= vae["idleSeconds"] < 600
    stage(staged)

    text = rewardfl("cache", "ls", "--dir", staged.cache_dir).stdout

    assert f"-/rewardfl on {os.uname().nodename}" in text
    assert f"s3://{bucket.name}/{VAE}" in text
    assert text.splitlines()[-1].startswith(f"{len(blobs(staged))} contents, ")


def test_prune_removes_what_was_asked_for_and_nothing_that_is_used(tmp_path: Path, bucket: Bucket, staged: TrainerConfig) -> None:
    everything = blobs(staged)
    training = staged.training.copy_with(model_paths=[f"s3://{bucket.name}/{VAE}"])
    stage(job(staged, tmp_path, "running", training=training))
    old = Path(staged.cache_dir) / "s3/endpoint/bucket/of-an-earlier-version.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    cut = Path(staged.cache_dir) / OWN_FOLDER / "sources" / ("0" * 64)
    cut.write_text('{"version": "v1", "si')

    assert rewardfl("cache", "prune", "--dir", staged.cache_dir, "--unused-for", "1d").stdout == "removed 0 contents, 0 B\n"
    would = json.loads(rewardfl("cache", "prune", "--dir", staged.cache_dir, "--all", "--dry-run", "-o", "json").stdout)
    assert (blobs(staged), old.exists()) == (everything, True)
    answer = rewardfl("cache", "prune", "--dir", staged.cache_dir, "--all", "-o", "json")
    removed = json.loads(answer.stdout)

    assert [item["name"] for item in removed["removed"]] == [item["name"] for item in would["removed"]]
    assert not old.exists()
    assert not cut.exists(), "a record that was cut by the end of its writer stays for ever"
    names = {name for item in removed["removed"] for name in item["names"]}
    assert names == {f"s3://{bucket.name}/{key}" for key in (*HIGH, f"{HIGH[0]}.config.json", LOW, TEXT_ENCODER)}
    assert everything - blobs(staged) == {digest(bucket.content[name.partition("/t-")[2].partition("/")[2]]) for name in names}


def test_verify_finds_what_a_disk_has_damaged_and_the_next_start_mends_it(bucket: Bucket, staged: TrainerConfig) -> None:
    assert rewardfl("cache", "verify", "--dir", staged.cache_dir).exit_code == 0
    blob = Cache(Path(staged.cache_dir)).blob_path(digest(bucket.content[VAE]))
    before = blob.stat()
    with blob.open("r+b") as file:
        file.write(b"X")
    os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))

    found = rewardfl("cache", "verify", "--dir", staged.cache_dir, "--remove")

    assert found.exit_code == ExitCode.IO_ERROR
    assert f"s3://{bucket.name}/{VAE}" in found.stdout
    assert "1 content" in found.stderr
    local = stage(staged)
    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
    assert rewardfl("cache", "verify", "--dir", staged.cache_dir).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("ls", "--dir", "/proc"), ExitCode.MISSING_INPUT, "--dir=/proc: is no folder that was staged into"),
        (("prune", "--dir", "/proc"), ExitCode.USAGE, "--max-size, --unused-for or both of them, or --all"),
        (("prune", "--dir", "/proc", "--max-size", "much"), ExitCode.USAGE, "'much': must be a number of bytes"),
        (("prune", "--dir", "/proc", "--unused-for", "1y"), ExitCode.USAGE, "'1y': must be a number with s, m, h, d or w"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_one_line(arguments: tuple[str, ...], code: ExitCode, said: str) -> None:
    answer = rewardfl("cache", *arguments)

    assert (answer.exit_code, answer.stderr.count("\n")) == (code, 1)
    assert said in answer.stderr


def test_a_stage_that_fails_leaves_no_lease(tmp_path: Path, bucket: Bucket) -> None:
    bucket.client.delete_object(Bucket=bucket.name, Key="faces/metadata.csv")
    config = configuration(tmp_path, bucket)

    failure_of(config)
    with run_stage(config, tmp_path) as process:
        process.communicate(timeout=60)

    assert message_left(tmp_path).reason is Reason.OBJECT_NOT_FOUND
    assert list((Path(config.cache_dir) / ".rewardfl/leases").iterdir()) == []
