"""The unfinished content of a file, and which of its ranges are there: what a stager that was killed leaves to the next one.

Beside the content lies its range map, a text that is only ever added to:

    {"version": ..., "size": ..., "range_bytes": ..., "boot": ...}
    7            range 7 was written
    flushed 1    the first of these lines is on the disk itself

A killed process loses nothing that it had written, so every line counts while the machine has not started again. After a power
cut only what had been flushed counts. Whatever the map says, a content is hashed as it lies on the disk before it is used.
"""

import contextlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rewardfl_trainer.staging.direct import DirectFile, whole_pages
from rewardfl_trainer.staging.folders import opened_file, write_whole
from rewardfl_trainer.staging.preallocate import preallocate

RANGE_BYTES = 8 * 2**20
"""Content is fetched in ranges of this size, and what is there is known range by range."""

FLUSH_BYTES = 256 * 2**20
"""So much of a file is written at most before it is flushed: what a power cut costs at most."""

MAP_SUFFIX = ".map"
BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")
_FLUSHED = "flushed"


@dataclass(frozen=True)
class Header:
    """What a range map is about."""

    version: str
    size: int
    range_bytes: int
    boot: str


class Part:
    """The unfinished content of one file of several ranges. The caller holds its lock. Safe to write to from several threads.

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
        self._file.write(buffer, stop - start, start)
        self._note(index, stop - start)

    def read(self, index: int, buffer: memoryview) -> None:
        """Read a range that is there to the beginning of `buffer`."""
        start, stop = self.bounds(index)
        self._file.read(buffer, stop - start, start)

    def finish(self) -> None:
        """Flush the whole content to the disk, with its right size, and close it."""
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
        self._descriptor = self._stack.enter_context(opened_file(self.path, os.O_RDWR | os.O_CREAT))
        done = read_map(self.path, self._header)
        if not done:
            os.ftruncate(self._descriptor, 0)
        preallocate(self._descriptor, whole_pages(self.size))
        if done:
            os.fdatasync(self._descriptor)  # the new map says of all of them that they are on the disk itself
        lines = [json.dumps(vars(self._header)), *map(str, sorted(done)), f"{_FLUSHED} {len(done)}"]
        write_whole(self._map_path, "".join(f"{line}\n" for line in lines))
        self._map = self._stack.enter_context(opened_file(self._map_path, os.O_WRONLY | os.O_APPEND))
        self._noted = len(done)
        self._file = DirectFile(self._descriptor)
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
        os.write(self._map, f"{line}\n".encode())


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
