"""Counts staged bytes and tells how fast they come."""

import threading
import time
from collections import deque
from collections.abc import Callable

from rewardfl_api.progress import StagingProgress

WINDOW_SECONDS = 10.0
"""The rate is that of the last seconds."""

BYTES_PER_MEGABYTE = 1e6


class Meter:
    """Bytes done of bytes in all. Safe to use from several threads.

    Args:
        bytes_total: bytes to stage, those that are already in place included.
        clock: seconds, monotonic.
    """

    def __init__(self, bytes_total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._total = bytes_total
        self._done = self._moved = 0
        self._samples = deque([(clock(), 0)])

    def add(self, count: int) -> None:
        """Count bytes that arrived; a negative number takes back what has to be fetched again."""
        with self._lock:
            self._done += count
            self._moved += max(0, count)

    def add_present(self, count: int) -> None:
        """Count bytes that were there before; they do not make the rate."""
        with self._lock:
            self._done += count

    def add_total(self, difference: int) -> None:
        """Correct the bytes in all, for a file whose size changed."""
        with self._lock:
            self._total += difference

    def snapshot(self) -> StagingProgress:
        """Return the counts and the rate of the last seconds."""
        with self._lock:
            now = self._clock()
            self._samples.append((now, self._moved))
            while len(self._samples) > 2 and now - self._samples[0][0] > WINDOW_SECONDS:
                self._samples.popleft()
            began, moved_before = self._samples[0]
            rate = (self._moved - moved_before) / (now - began) if now > began else 0.0
            return StagingProgress(bytes_done=max(0, self._done), bytes_total=self._total, bytes_per_second=rate)

    def line(self) -> str:
        """Return the counts as a line for people."""
        now = self.snapshot()
        left = now.bytes_total - now.bytes_done
        seconds = f", {left / now.bytes_per_second:.0f} s left" if now.bytes_per_second and left else ""
        return (
            f"staged {now.bytes_done / BYTES_PER_MEGABYTE:.1f} of {now.bytes_total / BYTES_PER_MEGABYTE:.1f} MB, "
            f"{now.bytes_per_second / BYTES_PER_MEGABYTE:.1f} MB/s{seconds}"
        )
