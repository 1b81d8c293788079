"""Decides whether it would help to start the operator again. Pure: it asks nobody, and is told what happens.

A watch that is silent is dead only if the API server answers other questions meanwhile. While the API server is down a restart
helps nobody: it would only make the operator start slowly when the API server is back.
"""

from collections.abc import Callable, Iterable
from time import monotonic

SILENCES = 2.0
"""A watch is given up and opened anew after one silence; after two it is clear that this did not help."""


class Liveness:
    """What is known of the API server's answers.

    Args:
        watch_silence_seconds: after which a watch is opened anew.
        clock: seconds that only go forward.
    """

    def __init__(self, watch_silence_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self.patience_seconds = SILENCES * watch_silence_seconds
        self._clock = clock
        self._answers_since: float | None = None
        self._last_answer = clock()

    def answered(self) -> None:
        """The API server has answered a question that has nothing to do with watches."""
        self._last_answer = self._clock()
        if self._answers_since is None:
            self._answers_since = self._last_answer

    def failed(self) -> None:
        """It has not."""
        self._answers_since = None

    def are_dead(self, silent_since: Iterable[float]) -> int:
        """Count those that have been silent for too long, though the API server was answering all the time."""
        if self._answers_since is None:
            return 0
        return sum(self._last_answer - max(since, self._answers_since) > self.patience_seconds for since in silent_since)
