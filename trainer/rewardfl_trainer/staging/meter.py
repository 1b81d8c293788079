"""Counts staged bytes and files, and tells how fast the bytes come. Fetches nothing and writes nothing."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from heapq import nlargest

from rewardfl_api.progress import FILE_NAME_MAX_CHARACTERS, FILES_SHOWN, FileState, StagedFile, StagingProgress

WINDOW_SECONDS = 10.0
"""The rate is that of the last seconds."""

BYTES_PER_MEGABYTE = 1e6


class FileMeter:
    """How far one file is. Made by `Meter`; safe to use from several threads."""

    def __init__(self, meter: "Meter", name: str, size: int) -> None:
        self._meter = meter
        self._name, self._size, self._done = name, size, 0
        self._state: FileState = "waiting"

    def add(self, count: int) -> None:
        """Count bytes that arrived from the storage; a negative number takes back what has to be fetched again."""
        with self._meter.lock:
            self._state = "fetching"
            self._done += count
            self._meter.count(count, moved=max(0, count))

    def add_present(self, count: int) -> None:
        """Count bytes of a file that is not whole yet and that an earlier start, or another stager, has fetched."""
        with self._meter.lock:
            self._state = "fetching"
            self._done += count
            self._meter.count(count)

    def take_back(self) -> None:
        """Forget every byte counted so far: the file is fetched from its beginning."""
        with self._meter.lock:
            self._meter.count(-self._done)
            self._done = 0

    def resize(self, size: int) -> None:
        """Correct the size of a file that was replaced in the storage."""
        with self._meter.lock:
            self._meter.expect_bytes(size - self._size)
            self._size = size

    def cached(self) -> None:
        """The file was there already, whole, and nothing of it had to be fetched."""
        self._finish("cached")

    def done(self) -> None:
        """The file is in place."""
        self._finish("done")

    def told(self) -> StagedFile:
        """Return what the status says of the file. The caller holds the meter's lock."""
        name = self._name
        if len(name) > FILE_NAME_MAX_CHARACTERS:
            name = f"…{name[1 - FILE_NAME_MAX_CHARACTERS :]}"
        return StagedFile(name=name, state=self._state, bytes_done=min(max(0, self._done), self._size), bytes_total=self._size)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def _finish(self, state: FileState) -> None:
        with self._meter.lock:
            if self._state not in ("done", "cached"):
                self._meter.count(self._size - self._done)
                self._meter.finish(self._size, is_cached=state == "cached")
                self._done, self._state = self._size, state


class Meter:
    """Bytes and files done, of those in all. Safe to use from several threads.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self._clock = clock
        self._total = self._done = self._moved = self._bytes_cached = self._files_done = self._files_cached = 0
        self._files: dict[Hashable, FileMeter] = {}
        self._shown: list[FileMeter] | None = []
        self._samples = deque([(clock(), 0)])

    def expect(self, key: Hashable, name: str, size: int) -> FileMeter:
        """Return the meter of a file; the first call adds it to those that are to be staged, and told of in this order."""
        with self.lock:
            if key not in self._files:
                self._files[key] = FileMeter(self, name, size)
                self._total += size
                self._shown = None
            return self._files[key]

    def snapshot(self) -> StagingProgress:
        """Return the counts, the rate of the last seconds, and how far the largest files are."""
        with self.lock:
            return StagingProgress(
                bytes_done=min(max(0, self._done), self._total),
                bytes_total=self._total,
                bytes_per_second=round(self._rate()),
                bytes_cached=self._bytes_cached,
                files_done=self._files_done,
                files_total=len(self._files),
                files_cached=self._files_cached,
                files=[file.told() for file in self._largest()],
            )

    def line(self) -> str:
        """Return the counts as a line for people."""
        now = self.snapshot()
        left = now.bytes_total - now.bytes_done
        seconds = f", {left / now.bytes_per_second:.0f} s left" if now.bytes_per_second and left else ""
        cached = f", {now.files_cached} from the cache" if now.files_cached else ""
        return (
            f"staged {now.bytes_done / BYTES_PER_MEGABYTE:.1f} of {now.bytes_total / BYTES_PER_MEGABYTE:.1f} MB, "
            f"{now.files_done} of {now.files_total} files{cached}, {now.bytes_per_second / BYTES_PER_MEGABYTE:.1f} MB/s{seconds}"
        )

    def count(self, count: int, moved: int = 0) -> None:
        """Add to the bytes that are in place, and to those that came just now. The caller holds the lock."""
        self._done += count
        self._moved += moved

    def expect_bytes(self, difference: int) -> None:
        """Add to the bytes in all. The caller holds the lock."""
        self._total += difference
        self._shown = None

    def finish(self, size: int, *, is_cached: bool) -> None:
        """Count a file that is in place. The caller holds the lock."""
        self._files_done += 1
        if is_cached:
            self._files_cached += 1
            self._bytes_cached += size

    def _rate(self) -> float:
        now = self._clock()
        self._samples.append((now, self._moved))
        while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_SECONDS:
            self._samples.popleft()
        began, moved_before = self._samples[0]
        return (self._moved - moved_before) / (now - began) if now > began else 0.0

    def _largest(self) -> list[FileMeter]:
        """The files that are told of one by one, in the order in which they are fetched."""
        if self._shown is None:
            files = list(self._files.values())
            largest = set(nlargest(FILES_SHOWN, range(len(files)), key=lambda index: files[index].size))
            self._shown = [file for index, file in enumerate(files) if index in largest]
        return self._shown
