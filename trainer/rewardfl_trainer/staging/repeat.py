"""Does something now and then beside the work, such as telling how far it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action`, which must not raise, at an interval, in a thread, while the block runs."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(seconds):
            action()

    thread = threading.Thread(target=loop, name="every", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
