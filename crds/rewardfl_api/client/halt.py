"""Ends what a thread waits for: from another thread, or at a time. A request that is being carried out is not taken back."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

SHORTEST_SECONDS = 0.05
"""A request gets at least so long, so that what has ended already is not asked for with no time at all."""


class HaltedError(Exception):
    """The wait was ended before what it waited for came. Never reaches a user."""


@dataclass(frozen=True)
class Halt:
    """Told of every pause and every answer that is read as it comes, it can end them.

    Attributes:
        deadline: when they end by themselves, in seconds of the monotonic clock.
    """

    deadline: float | None = None
    _told: threading.Event = field(default_factory=threading.Event)
    _answers: set[Any] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def within(self, seconds: float | None) -> "Halt":
        """Return the same with a deadline so many seconds from now, where it had no earlier one."""
        if seconds is None:
            return self
        end = time.monotonic() + seconds
        return replace(self, deadline=end if self.deadline is None else min(end, self.deadline))

    def now(self) -> None:
        """End it. From any thread, and as often as one likes."""
        with self._lock:
            self._told.set()
            for answer in self._answers:
                _shut(answer)

    @property
    def was_told(self) -> bool:
        """Whether somebody has ended it."""
        return self._told.is_set()

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def check(self) -> None:
        """Raise when it has ended.

        Raises:
            HaltedError: it has.
        """
        if self.was_told or self.is_late:
            raise HaltedError

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            HaltedError: it has ended.
        """
        self._told.wait(self.at_most(seconds))
        self.check()

    def at_most(self, seconds: float) -> float:
        """Return `seconds`, or what is left until the deadline where that is less."""
        return seconds if self.deadline is None else min(seconds, max(self.deadline - time.monotonic(), SHORTEST_SECONDS))

    @contextlib.contextmanager
    def reading(self, answer: Any) -> Iterator[None]:
        """Read an answer as it comes, and close it after the block. When this ends, so does the answer."""
        with self._lock:
            self._answers.add(answer)
            if self.was_told:
                _shut(answer)
        try:
            yield
        finally:
            with self._lock:
                self._answers.discard(answer)
            answer.close()


def _shut(answer: Any) -> None:
    """Let whoever reads it find the end of it."""
    with contextlib.suppress(Exception):  # it has ended by itself, or was not begun
        answer.shutdown()
