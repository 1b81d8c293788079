"""Fetches files of one range in batches: what costs time for each of thousands of them is done once for a batch.

A file of one range has nothing to go on from, so it needs no range map: it is read whole, hashed in memory and written. The
files of a batch are flushed together (the first flush brings the others along) and enter the cache behind one gate.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rewardfl_api.errors import RewardFLError
from rewardfl_trainer.staging.buffers import Buffers
from rewardfl_trainer.staging.cache import Cache, Source
from rewardfl_trainer.staging.direct import DirectFile
from rewardfl_trainer.staging.folders import opened_file
from rewardfl_trainer.staging.meter import FileMeter, Meter
from rewardfl_trainer.staging.part import RANGE_BYTES, map_path
from rewardfl_trainer.staging.plan import PlannedFile
from rewardfl_trainer.staging.reading import Reader
from rewardfl_trainer.staging.space import MismatchError, arriving
from rewardfl_trainer.staging.sums import Sums
from rewardfl_trainer.storage_errors import ObjectChangedError

MOST_FILES = 16
"""In a batch. So many descriptors a thread are open; 32 threads stay below the 1,024 that a process may have by default."""


def is_small(planned: PlannedFile) -> bool:
    """Whether a file is one of those that are fetched here."""
    return planned.file.size <= RANGE_BYTES


def batches(files: Sequence[PlannedFile], threads: int) -> list[list[PlannedFile]]:
    """Return small files in batches, in their order: small enough that every thread has one, and at most a range in all."""
    most = max(1, min(MOST_FILES, len(files) // threads))
    found: list[list[PlannedFile]] = []
    size = 0
    for planned in files:
        if not found or len(found[-1]) == most or size + planned.file.size > RANGE_BYTES:
            found.append([])
            size = 0
        found[-1].append(planned)
        size += planned.file.size
    return found


@dataclass(frozen=True)
class _Arrived:
    """A file that lies verified in its part, which is open and not flushed yet."""

    planned: PlannedFile
    meter: FileMeter
    sha256: str
    descriptor: int


class SmallFiles:
    """Fetches small files into a cache. Safe to use from several threads.

    Args:
        cache: where they go.
        meter: is told of every byte.
        reader: reads them.
        buffers: what they are read into.
    """

    def __init__(self, cache: Cache, meter: Meter, reader: Reader, buffers: Buffers) -> None:
        self._cache, self._meter, self._reader, self._buffers = cache, meter, reader, buffers

    def fetch(self, batch: Sequence[PlannedFile]) -> list[PlannedFile]:
        """Fetch what is not in the cache yet. Whatever happens, the files that have arrived by then enter it.

        Returns:
            Those that are to be fetched one by one: another stager has their lock, or their content is not what was announced.
        """
        left, arrived = list[PlannedFile](), list[_Arrived]()
        with self._cache.free_locks([planned.place for planned in batch]) as mine, ExitStack() as descriptors:
            try:
                for planned in batch:
                    if planned.place not in mine or not self._fetch_one(planned, arrived, descriptors):
                        left.append(planned)
            finally:
                self._keep(arrived)
        return left

    def fetch_once(self, planned: PlannedFile, meter: FileMeter) -> None:
        """Fetch a file whose lock the caller holds.

        Raises:
            ObjectChangedError, MismatchError: its content is not what was announced.
        """
        with ExitStack() as descriptors:
            self._keep([self._bring(planned, meter, descriptors)])

    def _fetch_one(self, planned: PlannedFile, arrived: list[_Arrived], descriptors: ExitStack) -> bool:
        """Fetch a file unless it is there; return whether it is what was announced."""
        file, place = planned.file, planned.place
        meter = self._meter.expect(place, file.key, file.size)
        if self._cache.is_current(place, file.version, file.size):
            meter.cached()
            return True
        try:
            arrived.append(self._bring(planned, meter, descriptors))
        except (ObjectChangedError, MismatchError):
            return False
        return True

    def _bring(self, planned: PlannedFile, meter: FileMeter, descriptors: ExitStack) -> _Arrived:
        """Read and verify a file, and write it to its part."""
        self._reader.check()
        file, buffer = planned.file, self._buffers.take()
        try:
            with arriving(self._cache, planned.place, file, meter):
                content = buffer[: file.size]
                self._reader.read(planned.remote, file, meter, 0, content)
                sums = Sums(file.size, planned.remote.digests(file))
                sums.update(content)
                if sums.wrong():
                    raise MismatchError(file.subject)
                path = self._cache.part_path(planned.place)
                map_path(path).unlink(missing_ok=True)  # of a large file that had this name
                descriptor = descriptors.enter_context(opened_file(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC))
                part = DirectFile(descriptor)
                part.write(buffer, file.size, 0)
                part.cut(file.size)
        finally:
            self._buffers.give(buffer)
        return _Arrived(planned, meter, sums.sha256, descriptor)

    def _keep(self, arrived: Sequence[_Arrived]) -> None:
        """Flush what has arrived and put it into the cache; a file that cannot be flushed keeps no other out."""
        flushed: list[_Arrived] = []
        errors: list[Exception] = []
        for each in arrived:
            try:
                with arriving(self._cache, each.planned.place, each.planned.file, each.meter):
                    os.fsync(each.descriptor)
                flushed.append(each)
            except (OSError, RewardFLError) as error:
                errors.append(error)
        files = ((each.planned.place, each.planned.file, each.sha256) for each in flushed)
        self._cache.commit_all({place: Source(file.version, file.size, sha256) for place, file, sha256 in files})
        for each in flushed:
            each.meter.done()
        if errors:
            raise errors[0]
