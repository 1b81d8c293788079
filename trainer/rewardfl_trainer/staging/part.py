"""The unfinished content of a file, and which of its ranges are there: what a stager that was killed leaves to the next one.

Beside the content lies its range map, a text that is only ever added to:

    {"version": ..., "size": ..., "range_bytes": ..., "boot": ...}
    7            range 7 was written
    flushed 1    the first of these lines is on the disk itself

A killed process loses nothing that it had written, so every line counts while the machine has not started again. After a power
cut only what had been flushed counts. Whatever the map says, a content is hashed as it lies on the disk before it is used.
"""

import contextlib
import errno
import fcntl
import json
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rewardfl_trainer.staging.folders import opened_file, write_whole
from rewardfl_trainer.staging.preallocate import preallocate

RANGE_BYTES = 8 * 2**20
"""Content is fetched in ranges of this size, and what is there is known range by range."""

FLUSH_BYTES = 256 * 2**20
"""So much of a file is written at most before it is flushed: what a power cut costs at most."""

MAP_SUFFIX = ".map"
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
DIRECT_VARIABLE = "REWARDFL_STAGING_DIRECT_IO"
"""0: large files are written through the page cache; see docs/decisions/0120."""

_FLUSHED = "flushed"
_NO_DIRECT = (errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True)
class Header:
    """What a range map is about."""

    version: str
    size: int
    range_bytes: int
    boot: str


class Part:
    """The unfinished content of one file. The caller holds its lock. Safe to write to from several threads.

    Large files are written past the page cache (O_DIRECT) where the file system can: the bytes are copied once less, and an
    init container's memory limit is not spent on them.

    Args:
        path: where it lies.
        version: what the storage calls the content.
        size: its bytes. The place on the disk is taken at once.

    Attributes:
        done: the ranges that are there.

    Raises:
        OSError: the disk is full.
        RewardFLError: a symbolic link is in the way (UnsafePath).
    """

    def __init__(self, path: Path, version: str, size: int) -> None:
        self.path, self.size = path, size
        self._map_path = map_path(path)
        self.count = -(-size // RANGE_BYTES)
        self._header = Header(version, size, RANGE_BYTES, boot_id())
        self._lock = threading.Lock()
        self._unflushed = 0
        self._stack = contextlib.ExitStack()
        try:
            self.done = self._open()
        except BaseException:
            self._stack.close()
            raise

    def bounds(self, index: int) -> tuple[int, int]:
        """Return the first byte of a range and the one after its last."""
        return index * RANGE_BYTES, min((index + 1) * RANGE_BYTES, self.size)

    def write(self, index: int, buffer: memoryview) -> None:
        """Write a range, which is at the beginning of `buffer`, and note that it is there."""
        start, stop = self.bounds(index)
        self._retry_buffered(lambda: _write(self._descriptor, buffer[: self._io_bytes(stop - start)], start))
        if self._map is not None:
            self._note(index, stop - start)

    def read(self, index: int, buffer: memoryview) -> None:
        """Read a range that is there to the beginning of `buffer`."""
        start, stop = self.bounds(index)
        self._retry_buffered(lambda: _read(self._descriptor, buffer[: self._io_bytes(stop - start)], start, stop - start))

    def finish(self) -> None:
        """Flush the whole content to the disk, with its right size, and close it."""
        if self._map is not None:
            os.ftruncate(self._descriptor, self.size)  # it was made, and perhaps written, in whole pages
        os.fsync(self._descriptor)
        self.close()
        self._map_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it; what is there stays for the next one."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _open(self) -> set[int]:
        self._map: int | None = None
        self._direct = False
        # a file of one range has nothing to go on from
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if self.count <= 1 else 0)
        self._descriptor = self._stack.enter_context(opened_file(self.path, flags))
        if self.count <= 1:
            return set()
        done = read_map(self.path, self._header)
        if not done:
            os.ftruncate(self._descriptor, 0)
        preallocate(self._descriptor, self._io_bytes(self.size, always=True))
        if done:
            os.fdatasync(self._descriptor)  # the new map says of all of them that they are on the disk itself
        lines = [json.dumps(vars(self._header)), *map(str, sorted(done)), f"{_FLUSHED} {len(done)}"]
        write_whole(self._map_path, "".join(f"{line}\n" for line in lines))
        self._map = self._stack.enter_context(opened_file(self._map_path, os.O_WRONLY | os.O_APPEND))
        self._noted = len(done)
        self._set_direct(os.environ.get(DIRECT_VARIABLE, "1") != "0")
        return done

    def _note(self, index: int, count: int) -> None:
        with self._lock:
            self._append(str(index))
            self._noted += 1
            self._unflushed += count
            flush, noted = self._unflushed >= FLUSH_BYTES, self._noted
            if flush:
                self._unflushed = 0
        if flush:
            os.fdatasync(self._descriptor)
            with self._lock:
                self._append(f"{_FLUSHED} {noted}")

    def _append(self, line: str) -> None:
        if self._map is not None:
            os.write(self._map, f"{line}\n".encode())

    def _io_bytes(self, count: int, *, always: bool = False) -> int:
        """Return the size of a transfer: past the page cache only whole pages are written; the excess is cut off at the end."""
        return -(-count // mmap.PAGESIZE) * mmap.PAGESIZE if self._direct or always else count

    def _retry_buffered(self, transfer: Callable[[], None]) -> None:
        """Do a transfer; where the file system only then says that it cannot do it directly, do it through the page cache."""
        try:
            transfer()
        except OSError as error:
            if error.errno not in _NO_DIRECT or not self._direct:
                raise
            self._set_direct(False)
            transfer()

    def _set_direct(self, direct: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
            self._direct = direct
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise


def boot_id() -> str:
    """Return what changes whenever the machine starts."""
    try:
        return BOOT_FILE.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def map_path(path: Path) -> Path:
    """Return where the range map of a part lies."""
    return path.with_name(path.name + MAP_SUFFIX)


def bytes_there(path: Path, version: str, size: int) -> int:
    """Return how much of a content is there, for those who wait for its stager."""
    done = read_map(path, Header(version, size, RANGE_BYTES, boot_id()))
    return sum(min(RANGE_BYTES, size - index * RANGE_BYTES) for index in done)


def read_map(path: Path, wanted: Header) -> set[int]:
    """Return the ranges of this content that are there for certain."""
    try:
        with opened_file(map_path(path), os.O_RDONLY) as descriptor:
            text = os.read(descriptor, os.fstat(descriptor).st_size).decode("ascii", errors="replace")
        whole = path.stat().st_size >= wanted.size
    except FileNotFoundError:
        return set()
    head, *lines = text.split("\n")[:-1] or [""]  # what follows the last line break was not written to its end
    try:
        header = Header(**json.loads(head))
    except (ValueError, TypeError):
        return set()
    if not whole or (header.version, header.size, header.range_bytes) != (wanted.version, wanted.size, wanted.range_bytes):
        return set()
    return _ranges(lines, -(-wanted.size // wanted.range_bytes), survived=bool(wanted.boot) and header.boot == wanted.boot)


def _ranges(lines: list[str], count: int, *, survived: bool) -> set[int]:
    """Return the ranges that the lines tell of: all of them, or after a restart of the machine those that were flushed."""
    noted: list[int] = []
    flushed = 0
    for line in lines:
        word, _, number = line.partition(" ")
        if word.isdigit() and int(word) < count and not number:
            noted.append(int(word))
        elif word == _FLUSHED and number.isdigit():
            flushed = int(number)
        else:
            break
    return set(noted if survived else noted[:flushed])


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
