"""A file that is written past the page cache (O_DIRECT) where its file system can, and through it where it cannot.

Past it the bytes are copied once less, and an init container's memory limit is not spent on them. Only whole pages can be written
so, from memory that is aligned to pages: what is written beyond the end of the content is cut off by `cut`.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable

DIRECT_VARIABLE = "REWARDFL_STAGING_DIRECT_IO"
"""0: files are written through the page cache; see docs/decisions/0120."""

_NO_DIRECT = (errno.EINVAL, errno.ENOTSUP)


class DirectFile:
    """An open file. Safe to use from several threads.

    Args:
        descriptor: of the file, open for reading and writing; the caller closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._direct = False
        if os.environ.get(DIRECT_VARIABLE, "1") != "0":
            self._set_direct(True)

    def write(self, buffer: memoryview, count: int, offset: int) -> None:
        """Write the first `count` bytes of a buffer, and perhaps what follows them there until the page is full."""
        self._retry_buffered(lambda: _write(self.descriptor, buffer[: self._io_bytes(count)], offset))

    def read(self, buffer: memoryview, count: int, offset: int) -> None:
        """Read `count` bytes to the beginning of a buffer."""
        self._retry_buffered(lambda: _read(self.descriptor, buffer[: self._io_bytes(count)], offset, count))

    def cut(self, size: int) -> None:
        """Give the file its right size."""
        os.ftruncate(self.descriptor, size)

    def _io_bytes(self, count: int) -> int:
        """Return the size of a transfer."""
        return whole_pages(count) if self._direct else count

    def _retry_buffered(self, transfer: Callable[[], None]) -> None:
        """Do a transfer; where the file system only then says that it cannot do it directly, do it through the page cache."""
        was_direct = self._direct  # another thread may have found it out meanwhile
        try:
            transfer()
        except OSError as error:
            if error.errno not in _NO_DIRECT or not was_direct:
                raise
            self._set_direct(False)
            transfer()

    def _set_direct(self, direct: bool) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
            self._direct = direct
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise


def whole_pages(count: int) -> int:
    """Return the bytes of the pages that so many bytes take."""
    return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _read(descriptor: int, view: memoryview, offset: int, count: int) -> None:
    done = 0
    while done < count:
        read = os.preadv(descriptor, [view[done:]], offset + done)
        if read == 0:
            raise OSError(errno.EIO, "the unfinished file is shorter than it was made")
        done += read
