"""Results written to a local folder, and the small parts of staging that need no server."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.spec import Storage as StorageSpec
from rewardfl_trainer.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE, Patience, make_client
from rewardfl_trainer.staging import locks
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.direct import DirectFile
from rewardfl_trainer.staging.plan import _glob_pattern
from rewardfl_trainer.storage import Storage, join

PLACE, OTHER = ("s3", "endpoint", "bucket", "a", "b.bin"), ("s3", "endpoint", "bucket", "c.bin")
HOLD_A_LOCK = """
import pathlib, sys, time
from rewardfl_trainer.staging import locks
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.direct import DirectFile
with Cache(pathlib.Path(sys.argv[1])).lock(tuple(sys.argv[2:]), lambda: None):
    print("held", flush=True)
    time.sleep(600)
"""


def put(cache: Cache, content: bytes, version: str = "v1") -> Path:
    with cache.lock(PLACE, lambda: None):
        cache.part_path(PLACE).write_bytes(content)
    return cache.commit(PLACE, version, len(content))


def test_a_file_is_copied_whole_to_a_local_output(tmp_path: Path) -> None:
    storage, local = Storage(StorageSpec()), tmp_path / "lora.safetensors"
    local.write_bytes(b"new")
    target = tmp_path / "out/checkpoints/lora.safetensors"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"old")

    storage.upload_file(local, str(target))

    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["lora.safetensors"]


def test_a_folder_is_copied_with_its_structure(tmp_path: Path) -> None:
    (tmp_path / "in/samples/after").mkdir(parents=True)
    (tmp_path / "in/metrics.jsonl").write_text("{}")
    (tmp_path / "in/samples/after/0.mp4").write_bytes(b"video")
    (tmp_path / "in/link").symlink_to("/etc/passwd")

    uris = Storage(StorageSpec()).upload_folder(tmp_path / "in", f"{tmp_path}/out/")

    assert uris == [f"{tmp_path}/out/metrics.jsonl", f"{tmp_path}/out/samples/after/0.mp4"]
    assert (tmp_path / "out/samples/after/0.mp4").read_bytes() == b"video"


def test_a_local_output_is_checked_and_left_as_it_was(tmp_path: Path) -> None:
    Storage(StorageSpec()).check_writable(f"{tmp_path}/out/")
    assert list((tmp_path / "out").iterdir()) == []

    (tmp_path / "file").touch()
    with pytest.raises(RewardFLError, match="output=") as caught:
        Storage(StorageSpec()).check_writable(f"{tmp_path}/file/out")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.IO_FAILED, ExitCode.IO_ERROR)


@pytest.mark.parametrize("output", ["hf://org/name:x", "s3://Bad_Bucket/x"])
def test_results_cannot_be_written_anywhere_else(output: str) -> None:
    with pytest.raises(RewardFLError, match="output=") as caught:
        Storage(StorageSpec()).check_writable(output)

    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


def test_names_are_joined_with_one_slash() -> None:
    assert join("s3://b/x/", "y") == join("s3://b/x", "y") == "s3://b/x/y"


@pytest.mark.parametrize(("variable", "value"), [(ATTEMPTS_VARIABLE, "0"), (ATTEMPTS_VARIABLE, "many"), (TIMEOUT_VARIABLE, "-1")])
def test_a_bad_bound_of_the_retries_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(RewardFLError, match=f"{variable}={value}"):
        Patience.from_environment()


def test_by_default_a_dead_endpoint_is_given_up_within_two_minutes() -> None:
    patience = Patience()

    assert patience.attempts * max(patience.connect_timeout_seconds, patience.read_timeout_seconds) < 120


def test_aws_itself_is_the_default_endpoint_and_its_checksums_are_used() -> None:
    client = make_client(StorageSpec(region="eu-central-1"))

    assert client.meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    assert client.meta.config.request_checksum_calculation == "when_supported"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/*.pth", "a/x.pth", "a/b/x.pth"),
        ("a/*/x.pth", "a/b/x.pth", "a/b/c/x.pth"),
        ("a/x-?-[0-9].pth", "a/x-q-7.pth", "a/x-q-a.pth"),
        ("a/[!b].pth", "a/c.pth", "a/b.pth"),
        ("a+b/(x)*", "a+b/(x)1", "aab/(x)1"),
    ],
)
def test_patterns_match_as_in_a_shell(pattern: str, matching: str, other: str) -> None:
    assert _glob_pattern(pattern).fullmatch(matching)
    assert not _glob_pattern(pattern).fullmatch(other)


def test_the_cache_knows_what_it_holds_and_what_was_changed_since(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert not cache.is_current(PLACE, "v1", 7)

    path = put(cache, b"content")

    assert path.read_bytes() == b"content"
    assert cache.is_current(PLACE, "v1", 7)
    assert not cache.is_current(PLACE, "v2", 7)
    os.utime(path, ns=(1, 1))
    assert not cache.is_current(PLACE, "v1", 7)


def test_the_lock_of_a_place_is_waited_for_and_the_wait_can_be_given_up(tmp_path: Path) -> None:
    cache, entered = Cache(tmp_path), threading.Event()

    def give_up() -> None:
        entered.set()
        raise TimeoutError

    with cache.lock(PLACE, lambda: None):
        with pytest.raises(TimeoutError), cache.lock(PLACE, give_up):
            pytest.fail("two hold the lock")
        assert entered.is_set()
    with cache.lock(PLACE, give_up), cache.free_locks([PLACE, OTHER]) as mine:
        assert mine == {OTHER}
    with cache.free_locks([PLACE, OTHER]) as mine:
        assert mine == {PLACE, OTHER}


def test_another_process_sees_which_locks_are_held_and_gets_them_when_their_holder_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_A_LOCK, str(tmp_path), *PLACE]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        cache = Cache(tmp_path)
        with cache.free_locks([PLACE, OTHER]) as mine:
            assert mine == {OTHER}
            holder.kill()
            holder.wait()
            with cache.lock(PLACE, lambda: pytest.fail("the lock of a killed process is still held")):
                pass


def test_locks_leave_no_files_of_their_own_behind(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.free_locks([("s3", "e", "bucket", f"{number}") for number in range(100)]) as mine:
        assert len(mine) == 100
    assert [path.name for path in (tmp_path / ".rewardfl/locks").iterdir()] == ["places"]


def test_a_volume_that_has_no_lock_left_is_asked_again_and_one_that_never_has_one_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    place_locks, take = locks.PlaceLocks(tmp_path / "places"), locks._set
    monkeypatch.setattr(locks, "_set", none_left)
    assert not place_locks.take("0" * 64)
    monkeypatch.setattr(locks, "_set", take)
    assert place_locks.take("0" * 64)
    place_locks.give("0" * 64)

    monkeypatch.setattr(locks, "_set", none_left)
    monkeypatch.setattr(locks, "WITHOUT_LOCKS_SECONDS", 0.0)
    with pytest.raises(OSError, match="No locks available"):
        place_locks.take("0" * 64)


def test_a_file_system_that_refuses_direct_writes_only_then_gets_buffered_ones_from_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, write = threading.Barrier(2), os.pwrite

    def refused_at_first(descriptor: int, view: memoryview, offset: int) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            is_second = both.wait(10)
            while is_second and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
                time.sleep(0.001)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return write(descriptor, view, offset)

    monkeypatch.setattr(os, "pwrite", refused_at_first)
    page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    page[:] = b"x" * mmap.PAGESIZE
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    file = DirectFile(descriptor)
    assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT, "this file system has no direct writes"
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(file.write, page, mmap.PAGESIZE, number * mmap.PAGESIZE) for number in range(2)]:
            done.result()
    os.close(descriptor)

    assert (tmp_path / "file").read_bytes() == b"x" * 2 * mmap.PAGESIZE
