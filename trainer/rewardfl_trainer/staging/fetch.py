"""Fetches the files of a plan: several at once, in ranges, written in place, verified, and put into the cache whole.

A file that another stager is fetching is waited for. The first error stops everything; what was finished stays finished.
"""

import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.meter import FileMeter, Meter
from rewardfl_trainer.staging.plan import Plan, PlannedFile
from rewardfl_trainer.staging.remote import BLOCK_BYTES, Digest, InterruptedReadError, Remote, RemoteFile
from rewardfl_trainer.storage_errors import ObjectChangedError, missing_object

FILES_AT_ONCE = 8
RANGES_AT_ONCE = 16
RANGE_BYTES = 16 * 2**20
FETCHES_A_FILE = 2
"""A file that changed or arrived damaged is fetched once more from the start."""

MAX_PAUSE_SECONDS = 8.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class CancelledError(Exception):
    """Another file failed; this one was given up."""


class MismatchError(Exception):
    """The content does not match the checksum that the storage announced."""


class Fetcher:
    """Fetches planned files into a cache.

    Args:
        cache: where they go.
        meter: is told of every byte.
        attempts: tries of a read in a row that bring nothing, after which it is given up.
    """

    def __init__(self, cache: Cache, meter: Meter, attempts: int) -> None:
        self._cache = cache
        self._meter = meter
        self._attempts = attempts
        self._cancelled = threading.Event()
        self._ranges = ThreadPoolExecutor(RANGES_AT_ONCE, thread_name_prefix="range")

    def fetch(self, files: Iterable[PlannedFile]) -> None:
        """Fetch what is not in the cache yet.

        Raises:
            RewardFLError: the first error. The threads of the other files end by themselves soon after.
        """
        pool = ThreadPoolExecutor(FILES_AT_ONCE, thread_name_prefix="file")
        try:
            futures = [pool.submit(self._fetch_file, planned) for planned in files]
            wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first(futures)
        finally:
            # a read that hangs must not delay the end of the process, so nothing is waited for here
            self._cancelled.set()
            pool.shutdown(wait=False, cancel_futures=True)
            self._ranges.shutdown(wait=False)  # what is queued there sees that it was cancelled

    def _fetch_file(self, planned: PlannedFile) -> None:
        """Fetch one file unless it is there, as the only stager that does."""
        with self._cache.lock(planned.place, self._check_cancelled):
            file = planned.file
            meter = self._meter.expect(planned.place, file.key, file.size)
            if self._cache.is_current(planned.place, file.version, file.size):
                meter.cached()
                return
            for _ in range(FETCHES_A_FILE):
                try:
                    self._fetch_once(planned.place, planned.remote, file, meter)
                    meter.done()
                    return
                except (ObjectChangedError, MismatchError):
                    file = self._look_again(planned, file)
                    meter.resize(file.size)
            raise RewardFLError(
                Reason.STAGED_FILE_CORRUPT,
                f"{file.subject}: its content changed or did not match its checksum, {FETCHES_A_FILE} times",
                "Leave the objects unchanged while jobs stage them; check the network and the cache volume's disk.",
                ExitCode.IO_ERROR,
            )

    def _look_again(self, planned: PlannedFile, file: RemoteFile) -> RemoteFile:
        """Return the file as it is announced now."""
        found = planned.remote.stat(file.request, file.key)
        if found is None:
            raise missing_object(file.subject, "was deleted while it was staged")
        return found

    def _fetch_once(self, place: tuple[str, ...], remote: Remote, file: RemoteFile, meter: FileMeter) -> None:
        """Fetch and verify the content of a file and put it into place."""
        try:
            with self._cache.part(place, file.size) as part:
                self._fill(part, remote, file, meter)
                _verify(part, remote, file, self._check_cancelled)
                os.fsync(part)
            self._cache.commit(place, file.version, file.size)
        except BaseException as error:
            meter.take_back()
            if not self._cancelled.is_set():
                self._cache.discard_part(place)
            if isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise disk_too_small(self._cache, file.size, f"while {file.subject} was written") from error
            raise

    def _fill(self, part: int, remote: Remote, file: RemoteFile, meter: FileMeter) -> None:
        """Write every range of the file to its place in the descriptor `part`."""
        ranges = [(start, min(start + RANGE_BYTES, file.size)) for start in range(0, file.size, RANGE_BYTES)]
        if len(ranges) <= 1:
            for start, stop in ranges:
                self._fill_range(part, remote, file, (start, stop), meter)
            return
        futures = [self._ranges.submit(self._fill_range, part, remote, file, bounds, meter) for bounds in ranges]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            _raise_first(futures)
        finally:
            # none may write to a descriptor that is closed, and perhaps another file's by then
            wait([future for future in futures if not future.cancel()])

    def _fill_range(self, part: int, remote: Remote, file: RemoteFile, bounds: tuple[int, int], meter: FileMeter) -> None:
        """Write one range, going on where it broke off; tries that bring nothing are limited."""
        position, stop = bounds
        failures = 0
        while position < stop:
            self._check_cancelled()
            before = position
            try:
                for block in remote.read(file, position, stop):
                    self._check_cancelled()
                    position += _write(part, block[: stop - position], position)
                    meter.add(len(block))
                broken: RewardFLError | None = None if position == stop else _cut_short(file)
            except InterruptedReadError as error:
                broken = error.final
            if broken is None:
                return
            failures = 1 if position > before else failures + 1
            if failures >= self._attempts:
                raise broken
            self._cancelled.wait(random.uniform(0.5, 1.0) * min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS))  # noqa: S311
            self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError


def check_disk(plan: Plan, cache: Cache) -> None:
    """Refuse to begin when what is missing does not fit.

    Raises:
        RewardFLError: needed and free bytes (DiskTooSmall, exit code 74).
    """
    missing = [p for p in plan.files.values() if not cache.is_current(p.place, p.file.version, p.file.size)]
    needed = sum(planned.file.size for planned in missing)
    reusable = sum(cache.part_bytes(planned.place) for planned in missing)
    if needed > free_bytes(cache) + reusable:
        raise disk_too_small(cache, needed, "before anything was fetched")


def disk_too_small(cache: Cache, needed: int, when: str) -> RewardFLError:
    """Return the error for a cache volume that is too small."""
    return RewardFLError(
        Reason.DISK_TOO_SMALL,
        f"cache_dir={cache.root}: {needed} bytes are needed and {free_bytes(cache)} are free, found {when}",
        "Use a larger cache volume, or remove what is not needed from it.",
        ExitCode.IO_ERROR,
    )


def free_bytes(cache: Cache) -> int:
    """Return the bytes that this user may still write to the cache volume."""
    found = os.statvfs(cache.root)
    return found.f_bavail * found.f_frsize


def _raise_first(futures: Iterable[Future[None]]) -> None:
    """Raise the first real error, in the order of the plan; those that were only cancelled come last."""
    errors = [error for future in futures if future.done() and not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, CancelledError)):
        raise error


def _write(descriptor: int, block: bytes, offset: int) -> int:
    """Write the whole block at `offset`; return its length."""
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
    return len(block)


def _cut_short(file: RemoteFile) -> RewardFLError:
    message = f"{file.subject}: the answer ends before its last byte"
    hint = "Check storage.endpoint and whatever stands between it and the cluster."
    return RewardFLError(Reason.STORAGE_UNAVAILABLE, message, hint, ExitCode.UNAVAILABLE)


def _verify(descriptor: int, remote: Remote, file: RemoteFile, check: Callable[[], None]) -> None:
    """Compare what was written with the announced checksum, where there is one.

    Raises:
        MismatchError: it differs, and the storage says that this means something.
    """
    digest = file.digest
    if digest is not None and _digest_of(descriptor, file.size, digest, check) != digest.value and remote.is_binding(file):
        raise MismatchError(file.subject)


def _digest_of(descriptor: int, size: int, digest: Digest, check: Callable[[], None]) -> str:
    """Return the checksum of the content, of the kind of `digest`. None of these guards against an attacker."""
    name = {"md5": "md5", "sha256": "sha256", "git-sha1": "sha1"}[digest.kind]
    state = hashlib.new(name, usedforsecurity=False)
    if digest.kind == "git-sha1":
        state.update(f"blob {size}\0".encode())
    for offset in range(0, size, BLOCK_BYTES):
        check()
        state.update(os.pread(descriptor, BLOCK_BYTES, offset))
    return state.hexdigest()
