"""The locks of places: a byte each of one file, so that thousands of them cost no files. They end with whoever holds them.

They are open file description locks (fcntl(2), Linux): two caches of one process exclude each other as two processes do.
"""

import errno
import fcntl
import os
import struct
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from rewardfl_trainer.staging.folders import opened_file

_NAME_DIGITS = 15
"""So many hexadecimal digits of a place's name are the offset of its byte: 60 bits, of the 63 that a file has."""

_BUSY = (errno.EAGAIN, errno.EACCES)

WITHOUT_LOCKS_SECONDS = 120.0
"""So long a file server may have no lock left (ENOLCK; EFS has 512 for a file) before it is taken for one without locks."""


class PlaceLocks:
    """The locks in a file, which is open only while this object holds one. Safe to use from several threads.

    Args:
        path: the file; it is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._held: set[str] = set()
        self._open = ExitStack()
        self._descriptor = -1
        self._without_since: float | None = None

    def take(self, name: str) -> bool:
        """Take the lock of the place with this name (hexadecimal digits) if nobody has it; return whether it was taken.

        Raises:
            RewardFLError: a symbolic link is in the way (UnsafePath).
            OSError: the volume has no locks.
        """
        with self._lock:
            if name in self._held:
                return False
            if not self._held:
                self._descriptor = self._open.enter_context(opened_file(self._path, os.O_RDWR | os.O_CREAT))
            try:
                _set(self._descriptor, fcntl.F_WRLCK, name)
                self._held.add(name)
                self._without_since = None
            except OSError as error:
                if error.errno not in _BUSY and not self._may_have_one_again(error):
                    raise
                return False
            finally:
                self._close_if_unused()
            return True

    def give(self, name: str) -> None:
        """Give a lock back."""
        with self._lock:
            try:
                _set(self._descriptor, fcntl.F_UNLCK, name)
            finally:
                self._held.remove(name)
                self._close_if_unused()

    def _may_have_one_again(self, error: OSError) -> bool:
        """Whether the file server has no lock left, and has had none for a short time only."""
        if error.errno != errno.ENOLCK:
            return False
        now = time.monotonic()
        self._without_since = self._without_since or now
        return now - self._without_since < WITHOUT_LOCKS_SECONDS

    def _close_if_unused(self) -> None:
        if not self._held:
            self._open.close()


def _set(descriptor: int, kind: int, name: str) -> None:
    """Lock or unlock a byte; never waits."""
    # struct flock: type, whence, start, length, pid (0 is asked for), padded as the compiler does
    wanted = struct.pack("hhqqi4x", kind, os.SEEK_SET, int(name[:_NAME_DIGITS], 16), 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
