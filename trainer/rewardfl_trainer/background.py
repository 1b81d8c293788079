"""A thread that does named tasks one after the other while training goes on, and tries again what fails.

Must not know what a task does. A task reports its own failure; here it only has to say that it failed.
"""

import threading
from collections.abc import Callable

Task = Callable[[], bool]
"""Returns whether it succeeded. Must not raise."""


class Background:
    """The thread, which lives while there is something to do.

    Args:
        name: of the thread.
        retry_seconds: pause before what failed is tried again; it ends when something new comes.
    """

    def __init__(self, name: str, retry_seconds: float) -> None:
        self.name, self.retry_seconds = name, retry_seconds
        self._changed = threading.Condition()
        self._waiting: dict[str, Task] = {}
        self._failed: dict[str, Task] = {}
        self._doing: tuple[str, Task] | None = None
        self._last_call = self._running = False

    def put(self, name: str, task: Task, *, first: bool = False) -> None:
        """Have a task done soon, before the others if it comes `first`. One of the same name that still waits is not done."""
        with self._changed:
            self._failed.pop(name, None)
            self._waiting.pop(name, None)
            self._waiting = {name: task, **self._waiting} if first else {**self._waiting, name: task}
            self._wake()

    def finish(self, timeout_seconds: float | None = None) -> list[str]:
        """Wait until everything is done, trying once more what failed; return the names of what is left."""
        with self._changed:
            self._last_call = True
            self._try_again()
            self._wake()
            self._changed.wait_for(lambda: self._doing is None and not self._waiting, timeout_seconds)
            self._last_call = False
            return list(dict([self._doing] if self._doing else []) | self._waiting | self._failed)

    def _wake(self) -> None:
        """Have the thread look at what there is to do. The caller holds the lock."""
        self._changed.notify_all()
        if self._waiting and not self._running:
            self._running = True
            threading.Thread(target=self._run, name=self.name, daemon=True).start()

    def _try_again(self) -> None:
        """Let what failed wait for its turn behind the rest. The caller holds the lock."""
        self._waiting, self._failed = {**self._waiting, **self._failed}, {}

    def _run(self) -> None:
        succeeded = True
        while (task := self._next(succeeded)) is not None:
            succeeded = task()

    def _next(self, succeeded: bool) -> Task | None:
        """Close the task that was done, and return the next one; None when nothing is left. Waits before it tries again."""
        with self._changed:
            if self._doing is not None and not succeeded and self._doing[0] not in self._waiting:
                self._failed.update([self._doing])
            self._doing = None
            self._changed.notify_all()
            if self._failed and not self._waiting and not self._last_call:
                self._changed.wait_for(lambda: bool(self._waiting) or self._last_call, self.retry_seconds)
                if not self._last_call:
                    self._try_again()
            if not self._waiting:
                self._running = False
                return None
            name = next(iter(self._waiting))
            self._doing = name, self._waiting.pop(name)
            return self._doing[1]
