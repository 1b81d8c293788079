"""Fetches the files of a plan: several at once, in ranges, written in place, verified, and put into the cache whole.

A large file has a thread, which asks for its ranges ahead and hashes them in order while later ones arrive; the ranges of all
files share the connections. Small files are fetched in batches: `small`. Content lies in memory only in the buffers that go
round. A file that another stager is fetching is waited for. The first error stops everything; what was finished stays finished,
and what was begun is gone on with by the next start.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import groupby

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.cpus import usable_cpus
from rewardfl_trainer.staging.buffers import Buffers
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.meter import FileMeter, Meter
from rewardfl_trainer.staging.part import Part, bytes_there
from rewardfl_trainer.staging.plan import PlannedFile
from rewardfl_trainer.staging.reading import CancelledError, Reader
from rewardfl_trainer.staging.remote import Remote, RemoteFile
from rewardfl_trainer.staging.small import SmallFiles, batches, is_small
from rewardfl_trainer.staging.space import MismatchError, arriving
from rewardfl_trainer.staging.sums import Sums
from rewardfl_trainer.storage_errors import ObjectChangedError, missing_object

FILES_AT_ONCE_A_CPU, RANGES_AT_ONCE_A_CPU = 4, 4
FEWEST_AT_ONCE, MOST_AT_ONCE = 8, 32
"""Bounds of both. 32 ranges and as many buffers more than that hold less than 400 MB."""

FILES_SHARING_BUFFERS = 4
"""A file uses at most so many-th part of the buffers, so that the hashing of one file never holds up all."""

SIGNAL_SECONDS = 1.0
"""A signal that arrives just before the main thread begins to wait does not end that wait: it is seen after this time."""

FETCHES_A_FILE = 2
"""A file that changed or arrived damaged is fetched once more from the start; a small one has been tried in its batch before."""


@dataclass(frozen=True)
class _Task:
    """A file that is being fetched."""

    part: Part
    remote: Remote
    file: RemoteFile
    meter: FileMeter


class Fetcher:
    """Fetches planned files into a cache.

    Args:
        cache: where they go.
        meter: is told of every byte.
        attempts: tries of a read in a row that bring nothing, after which it is given up.
        cpus: how many CPUs there are to use.
    """

    def __init__(self, cache: Cache, meter: Meter, attempts: int, cpus: int | None = None) -> None:
        self._cache = cache
        self._meter = meter
        self._reader = Reader(attempts)
        cpus = cpus or usable_cpus()
        self._files_at_once = _between(cpus * FILES_AT_ONCE_A_CPU)
        ranges_at_once = _between(cpus * RANGES_AT_ONCE_A_CPU)
        buffers = ranges_at_once + FEWEST_AT_ONCE
        self._ahead = max(2, buffers // FILES_SHARING_BUFFERS)
        self._buffers = Buffers(buffers)
        self._small = SmallFiles(cache, meter, self._reader, self._buffers)
        self._ranges = ThreadPoolExecutor(ranges_at_once, thread_name_prefix="range")

    def fetch(self, files: Iterable[PlannedFile]) -> None:
        """Fetch what is not in the cache yet.

        Raises:
            RewardFLError: the first error. The threads of the other files end by themselves soon after.
        """
        pool = ThreadPoolExecutor(self._files_at_once, thread_name_prefix="file")
        try:
            futures = [pool.submit(self._fetch_batch, batch) for batch in self._in_batches(files)]
            unfinished = set(futures)
            while unfinished:
                unfinished = wait(unfinished, SIGNAL_SECONDS, FIRST_EXCEPTION).not_done
                _raise_first(futures)
        finally:
            # a read that hangs must not delay the end of the process, so nothing is waited for here
            self._reader.cancel()
            pool.shutdown(wait=False, cancel_futures=True)
            self._ranges.shutdown(wait=False)  # what is queued there sees that it was cancelled

    def _in_batches(self, files: Iterable[PlannedFile]) -> Iterable[list[PlannedFile]]:
        """Return the files in their order: large ones alone, small ones that follow each other together."""
        for small, group in groupby(files, is_small):
            alike = list(group)
            yield from batches(alike, self._files_at_once) if small else ([planned] for planned in alike)

    def _fetch_batch(self, batch: list[PlannedFile]) -> None:
        for planned in self._small.fetch(batch) if is_small(batch[0]) else batch:
            self._fetch_file(planned)

    def _fetch_file(self, planned: PlannedFile) -> None:
        """Fetch one file unless it is there, as the only stager that does."""
        file, place = planned.file, planned.place
        meter = self._meter.expect(place, file.key, file.size)
        with self._cache.lock(place, self._watching(planned, meter)):
            meter.take_back()
            if self._cache.is_current(place, file.version, file.size):
                meter.cached()
                return
            for _ in range(FETCHES_A_FILE):
                try:
                    self._fetch_once(replace(planned, file=file), meter)
                    meter.done()
                    return
                except (ObjectChangedError, MismatchError):
                    file = self._look_again(planned, file)
                    meter.resize(file.size)
            raise RewardFLError(
                Reason.STAGED_FILE_CORRUPT,
                f"{file.subject}: its content changed or did not match its checksum, again and again",
                "Leave the objects unchanged while jobs stage them; check the network and the cache volume's disk.",
                ExitCode.IO_ERROR,
            )

    def _watching(self, planned: PlannedFile, meter: FileMeter) -> Callable[[], None]:
        """Return what to do now and then while another stager fetches the file: tell how far that one is."""
        path, file, told = self._cache.part_path(planned.place), planned.file, 0

        def look() -> None:
            nonlocal told
            self._reader.check()
            there = bytes_there(path, file.version, file.size)
            if there != told:
                meter.add_present(there - told)
                told = there

        return look

    def _look_again(self, planned: PlannedFile, file: RemoteFile) -> RemoteFile:
        """Return the file as it is announced now."""
        found = planned.remote.stat(file.request, file.key)
        if found is None:
            raise missing_object(file.subject, "was deleted while it was staged")
        return found

    def _fetch_once(self, planned: PlannedFile, meter: FileMeter) -> None:
        """Fetch and verify the content of a file and put it into place."""
        if is_small(planned):
            self._small.fetch_once(planned, meter)
            return
        place, file = planned.place, planned.file
        with arriving(self._cache, place, file, meter):
            with Part(self._cache.part_path(place), file.version, file.size) as part:
                sums = self._fill(_Task(part, planned.remote, file, meter))
                if sums.wrong():
                    raise MismatchError(file.subject)
                part.finish()
            self._cache.commit(place, file.version, file.size, sha256=sums.sha256)

    def _fill(self, task: _Task) -> Sums:
        """Bring every range of a file to its place, and return the checksums of the whole."""
        part = task.part
        sums = Sums(part.size, task.remote.digests(task.file))
        ahead: deque[tuple[int, memoryview, Future[None]]] = deque()
        try:
            for index in range(part.count):
                while (buffer := self._buffer(ahead)) is None:
                    self._hash_next(part, sums, ahead)
                ahead.append((index, buffer, self._ranges.submit(self._bring_range, task, index, buffer)))
            while ahead:
                self._hash_next(part, sums, ahead)
        finally:
            # none may write to a descriptor that is closed, and perhaps another file's by then
            wait([future for _, _, future in ahead if not future.cancel()])
            for _, buffer, _ in ahead:
                self._buffers.give(buffer)
        return sums

    def _buffer(self, ahead: "deque[tuple[int, memoryview, Future[None]]]") -> memoryview | None:
        """Return a buffer for the next range of a file; None when the file has to give one back first."""
        if not ahead:
            return self._buffers.take()
        return self._buffers.take_free() if len(ahead) < self._ahead else None

    def _hash_next(self, part: Part, sums: Sums, ahead: "deque[tuple[int, memoryview, Future[None]]]") -> None:
        """Wait for the first of the ranges that were asked for, and hash it."""
        index, buffer, future = ahead[0]
        future.result()
        start, stop = part.bounds(index)
        sums.update(buffer[: stop - start])
        ahead.popleft()
        self._buffers.give(buffer)

    def _bring_range(self, task: _Task, index: int, buffer: memoryview) -> None:
        """Bring a range into the buffer and into the part, where it may have been left by an earlier start."""
        self._reader.check()
        start, stop = task.part.bounds(index)
        if index in task.part.done:
            task.part.read(index, buffer)
            task.meter.add_present(stop - start)
            return
        self._reader.read(task.remote, task.file, task.meter, start, buffer[: stop - start])
        task.part.write(index, buffer)


def _raise_first(futures: Iterable[Future[None]]) -> None:
    """Raise the first real error, in the order of the plan; those that were only cancelled come last."""
    errors = [error for future in futures if future.done() and not future.cancelled() and (error := future.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, CancelledError)):
        raise error


def _between(count: int) -> int:
    return min(MOST_AT_ONCE, max(FEWEST_AT_ONCE, count))
