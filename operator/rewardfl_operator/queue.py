"""A queue of keys to work on: each at most once at a time, later when asked, slower when it fails, what is urgent first.

What is added while it is worked on is worked on again afterwards. It knows nothing of Kubernetes.
"""

import asyncio
import heapq
import random
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Generic, TypeVar

KeyType = TypeVar("KeyType", bound=Hashable)

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 120.0
JITTER = (0.8, 1.2)


class WorkQueue(Generic[KeyType]):
    """The queue.

    Args:
        spacing_seconds: least time between the end of one turn of a key and the start of its next.
        waited: told, for each turn, by how many seconds it came later than it was due.
    """

    def __init__(self, spacing_seconds: float = 1.0, waited: Callable[[float], None] = lambda _: None) -> None:
        self._spacing, self._waited = spacing_seconds, waited
        self._due: dict[KeyType, float] = {}
        self._heap: list[tuple[bool, float, int, KeyType]] = []
        self._count = 0
        self._working: set[KeyType] = set()
        self._rested: dict[KeyType, float] = {}
        self._failures: dict[KeyType, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for their turn."""
        return len(self._due)

    def add(self, key: KeyType, delay_seconds: float = 0.0, *, urgent: bool = False) -> None:
        """Give `key` a turn after `delay_seconds`, or sooner when it already had an earlier one.

        One that is urgent, and may have its turn at once, goes before all that are not, however long these have waited.
        """
        at = max(monotonic() + delay_seconds, self._rested.get(key, 0.0))
        if at >= self._due.get(key, float("inf")):
            return
        self._due[key] = at
        if key not in self._working:
            self._push(key, at, urgent=urgent and at <= monotonic())

    async def get(self) -> KeyType:
        """Wait for the next key whose time has come. `done` or `retry` ends its turn."""
        while True:
            wait = self._seconds_to_next()
            if wait is not None and wait <= 0:
                *_, key = heapq.heappop(self._heap)
                del self._due[key]
                self._working.add(key)
                self._waited(-wait)
                return key
            self._wake.clear()
            try:
                await asyncio.wait_for(self._wake.wait(), wait)
            except TimeoutError:
                continue

    def done(self, key: KeyType) -> None:
        """End a turn that went well."""
        self._failures.pop(key, None)
        self._finish(key)

    def retry(self, key: KeyType, at_least_seconds: float = 0.0) -> float:
        """End a turn that failed: the next one comes later each time. Return in how many seconds.

        Whatever is added meanwhile may bring it forward, but never before `at_least_seconds` are over.
        """
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay: float = min(FIRST_RETRY_SECONDS * 2 ** (failures - 1), LONGEST_RETRY_SECONDS)
        delay = max(delay * random.uniform(*JITTER), at_least_seconds)  # noqa: S311 - jitter
        self._due.pop(key, None)
        self._finish(key, at_least_seconds)
        self.add(key, delay)
        return delay

    def forget(self, key: KeyType) -> None:
        """Remember nothing more of `key`, which is being worked on."""
        self._failures.pop(key, None)
        self._due.pop(key, None)
        self._working.discard(key)
        self._rested.pop(key, None)

    def _finish(self, key: KeyType, at_least_seconds: float = 0.0) -> None:
        self._working.discard(key)
        self._rested[key] = monotonic() + max(self._spacing, at_least_seconds)
        if key in self._due:
            at = self._due[key] = max(self._due[key], self._rested[key])
            self._push(key, at)

    def _push(self, key: KeyType, at: float, *, urgent: bool = False) -> None:
        self._count += 1
        heapq.heappush(self._heap, (not urgent, at, self._count, key))
        self._wake.set()

    def _seconds_to_next(self) -> float | None:
        """Seconds until the first key's time; None when none waits. Entries that were overtaken are dropped."""
        while self._heap:
            _, at, _, key = self._heap[0]
            if self._due.get(key) == at and key not in self._working:
                return at - monotonic()
            heapq.heappop(self._heap)
        return None
