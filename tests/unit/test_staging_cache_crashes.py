"""The cache at its worst: stagers that are killed at any step, and many at once in a cache that is too small for them all.

Neither leaves anything that the next one would take for whole, and the limit holds at every moment.
"""

import os
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.uris import parse_source
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.inventory import verify
from rewardfl_trainer.staging.leases import DEAD_AFTER_SECONDS, Lease, hand_over, live
from rewardfl_trainer.staging.remote import RemoteFile
from rewardfl_trainer.staging.room import Limit, reserve
from rewardfl_trainer.staging.sources import Kind, Request
from rewardfl_trainer.staging.views import publish

KILLED = 9
STEPS = {
    "open",
    "os.rename",
    "os.link",
    "os.remove",
    "os.mkdir",
    "os.chmod",
    "os.utime",
    "os.rmdir",
    "fcntl.flock",
    "fcntl.fcntl",
}
"""Audit events of what changes a disk, and of taking locks."""

REQUEST = Request("training.model_paths", "s3://bucket/x", Kind.MODEL, parse_source("s3://bucket/x"))
CONTENTS = {("s3", "e", "bucket", "a", "one.bin"): b"one", ("s3", "e", "bucket", "two.bin"): b"two two"}
OLD = ("s3", "e", "bucket", "old.bin")
LIMIT = Limit("30", 30)


def put(cache: Cache, place: tuple[str, ...], content: bytes) -> None:
    with cache.lock(place, lambda: None):
        cache.part_path(place).write_bytes(content)
        cache.commit(place, "v1", len(content), sha256=sha256(content).hexdigest())


def earlier_start(root: Path) -> None:
    """Leave a view of something large that nobody uses any more: it has to go."""
    cache = Cache(root)
    put(cache, OLD, b"o" * 25)
    publish(cache, {OLD: sha256(b"o" * 25).hexdigest()})


def stage(root: Path) -> Path:
    """Do what a start does: reserve, fetch, build the view, hand the lease over."""
    cache = Cache(root)
    cache.lease = lease = Lease.new(cache.own, "team/job on pod")
    wanted = {place: RemoteFile(REQUEST, place[-1], len(content), "v1") for place, content in CONTENTS.items()}
    for place in reserve(cache, lease, wanted, LIMIT):
        put(cache, place, CONTENTS[place])
    view = publish(cache, {place: cache.used[place] for place in CONTENTS})
    hand_over(lease, root / "work")
    return view


def dies_at(step: int, action: Callable[[], object]) -> bool:
    """Run `action` in a child that is killed before its step of this number; whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def count(event: str, _arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in STEPS:
                left -= 1
                if left == 0:
                    os._exit(KILLED)

        sys.addaudithook(count)
        try:
            action()
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, KILLED)
    return code == KILLED


def test_a_start_after_one_that_was_killed_anywhere_finds_nothing_half_and_ends_well(tmp_path: Path) -> None:
    step = 0
    killed = True
    while killed:
        step += 1
        root = tmp_path / str(step)
        earlier_start(root)

        killed = dies_at(step, lambda root=root: stage(root))  # type: ignore[misc]

        cache = Cache(root)
        for place, content in {**CONTENTS, OLD: b"o" * 25}.items():
            if cache.is_current(place, "v1", len(content)):
                assert cache.blob_path(cache.used[place]).read_bytes() == content
        assert not (root / "work/staged.json").exists()
        for lease in live(cache.own):
            past = lease.path.stat().st_mtime - DEAD_AFTER_SECONDS - 1
            os.utime(lease.path, (past, past))
        view = stage(root)
        assert {place: view.joinpath(*place).read_bytes() for place in CONTENTS} == CONTENTS
        assert not cache.is_current(OLD, "v1", 25)
    assert step > 50, "the start has that many steps at least"


CROWD = 5
CROWD_SECONDS = 2.0
OBJECTS = {("s3", "e", "bucket", f"{number}.bin"): bytes([number]) * (100 + 30 * number) for number in range(14)}
CROWD_LIMIT = Limit("2500", 2500)
"""Two thirds of all objects: enough for the largest job, and too small for several."""


def one_of_a_crowd(root: Path, number: int) -> None:
    """Stage some objects again and again, use them, and give them free."""
    chance, end, staged = random.Random(number), time.monotonic() + CROWD_SECONDS, 0
    while time.monotonic() < end or not staged:
        cache = Cache(root)
        cache.lease = lease = Lease.new(cache.own, f"team/{number} on pod")
        wanted = {place: OBJECTS[place] for place in chance.sample(list(OBJECTS), chance.randint(1, 4))}
        files = {place: RemoteFile(REQUEST, place[-1], len(content), "v1") for place, content in wanted.items()}
        try:
            for place in reserve(cache, lease, files, CROWD_LIMIT):
                with cache.lock(place, lambda: None):
                    if not cache.is_current(place, "v1", len(wanted[place])):
                        cache.part_path(place).write_bytes(wanted[place])
                        cache.commit(place, "v1", len(wanted[place]), sha256=sha256(wanted[place]).hexdigest())
            view = publish(cache, {place: cache.used[place] for place in wanted})
            time.sleep(chance.uniform(0, 0.01))
            assert {place: view.joinpath(*place).read_bytes() for place in wanted} == wanted
            staged += 1
        except RewardFLError as error:
            if error.reason is not Reason.DISK_TOO_SMALL:
                raise
        finally:
            lease.release()
        with cache.gate():
            used = sum(path.stat().st_size for path in (root / "blobs").rglob("*") if path.is_file())
        assert used <= CROWD_LIMIT.size


def test_many_stagers_of_a_small_cache_all_get_their_files_and_the_limit_holds(tmp_path: Path) -> None:
    Cache(tmp_path)

    with ProcessPoolExecutor(CROWD, mp_context=get_context("fork")) as pool:
        for done in [pool.submit(one_of_a_crowd, tmp_path, number) for number in range(CROWD)]:
            done.result()

    cache = Cache(tmp_path)
    found = verify(cache)
    assert (found.contents > 0, found.corrupt) == (True, [])
    assert list((cache.own / "parts").iterdir()) == []
    assert live(cache.own) == []
