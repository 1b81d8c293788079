"""Claims on work that several processes of a machine, or of a shared volume, could do: a dead process holds none."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claim(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Lock the file `path`, which is made if need be, while the block runs.

    Args:
        path: the lock file; its folder exists.
        wait: wait for whoever holds it.

    Yields:
        Whether the lock is ours; always True with `wait`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
