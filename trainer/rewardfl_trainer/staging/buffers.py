"""The memory that content passes through: a fixed number of buffers, made when first needed and used again and again."""

import mmap
import threading

from rewardfl_trainer.staging.part import RANGE_BYTES


class Buffers:
    """At most `count` buffers of one range each, aligned to pages as direct writes want. Safe to use from several threads."""

    def __init__(self, count: int) -> None:
        self._unmade = count
        self._free: list[memoryview] = []
        self._changed = threading.Condition()

    def take(self) -> memoryview:
        """Return a free buffer; wait for one. Who waits here may hold none: it could be the one that is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._unmade)
            return self._next()

    def take_free(self) -> memoryview | None:
        """Return a free buffer, or None."""
        with self._changed:
            return self._next() if self._free or self._unmade else None

    def give(self, buffer: memoryview) -> None:
        """Take a buffer back."""
        with self._changed:
            self._free.append(buffer)
            self._changed.notify()

    def _next(self) -> memoryview:
        if self._free:
            return self._free.pop()
        self._unmade -= 1
        return memoryview(mmap.mmap(-1, RANGE_BYTES))
