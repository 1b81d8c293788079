"""The folder that files are staged into: safe places, one writer a file, and a record of what lies there.

    <cache>/s3/<endpoint>/<bucket>/<key>      the files, as the storage names them
    <cache>/.rewardfl/{locks,parts,records}/  a lock, the unfinished content and the record of each, under a hash of its place

No component of a path may be a symbolic link, whoever made it. Several stagers may share the folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.disk import sha256_of

OWN_FOLDER = ".rewardfl"
MAX_NAME_BYTES = 255
"""Longest file name that Linux takes."""

LOCK_POLL_SECONDS = 0.25
STAT_BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system."""

FIRST_PRINTABLE = " "
REMOVE_HINT = "Remove it from the cache volume."


@dataclass(frozen=True)
class Record:
    """What was put at a place, to recognise it again without reading it."""

    version: str
    size: int
    mtime_ns: int
    sha256: str


class Cache:
    """The cache folder at `root`, which is made if need be."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root.resolve()
        for kind in ("locks", "parts", "records"):
            with self._folder((OWN_FOLDER, kind), create=True):
                pass

    def path(self, place: Sequence[str]) -> Path:
        """Return the absolute path of a place."""
        return self.root.joinpath(*place)

    def is_current(self, place: Sequence[str], version: str, size: int) -> bool:
        """Whether the file at `place` is whole, unchanged since it was put there, and of this version.

        Raises:
            RewardFLError: a symbolic link is in the way (UnsafePath).
        """
        found = self._stat(place)
        record = self._record(place)
        if found is None or record is None or found.st_size != size:
            return False
        return (record.version, record.size, record.mtime_ns) == (version, size, found.st_mtime_ns)

    @contextmanager
    def lock(self, place: Sequence[str], check: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a place; while another process holds it, `check` is called now and then and may raise."""
        with self._own("locks", place, os.O_RDWR | os.O_CREAT) as descriptor:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    check()
                    time.sleep(LOCK_POLL_SECONDS)
            yield

    @contextmanager
    def part(self, place: Sequence[str], size: int) -> Iterator[int]:
        """Open the unfinished content of a place, emptied, as a descriptor; the caller holds its lock."""
        with self._own("parts", place, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
            os.ftruncate(descriptor, size)
            yield descriptor

    def part_bytes(self, place: Sequence[str]) -> int:
        """Return the disk space that unfinished content of a place takes; it is given back when the place is fetched."""
        try:
            return self._own_path("parts", place).lstat().st_blocks * STAT_BLOCK_BYTES
        except FileNotFoundError:
            return 0

    def discard_part(self, place: Sequence[str]) -> None:
        """Remove the unfinished content of a place."""
        self._own_path("parts", place).unlink(missing_ok=True)

    def commit(self, place: Sequence[str], version: str, size: int, *, sha256: str | None = None) -> Path:
        """Move the finished content of a place to where it belongs and record it. The caller has flushed it to the disk.

        Args:
            place: where it belongs.
            version: what the storage calls this content.
            size: its bytes.
            sha256: its checksum, in hexadecimal digits. None: it is computed here, which reads the content once more.
        """
        part, record = self._own_path("parts", place), self._own_path("records", place)
        sha256 = sha256 or sha256_of(part)
        record.unlink(missing_ok=True)
        with self._folder(place[:-1], create=True) as folder:
            try:
                os.rename(part, place[-1], dst_dir_fd=folder)
            except IsADirectoryError as error:
                message = f"cache_dir: {self.path(place)} is a folder where a file has to be"
                raise RewardFLError(Reason.IO_FAILED, message, REMOVE_HINT, ExitCode.IO_ERROR) from error
            mtime_ns = os.stat(place[-1], dir_fd=folder, follow_symlinks=False).st_mtime_ns
            os.fsync(folder)
        fresh = record.with_suffix(".new")
        fresh.write_text(json.dumps({**asdict(Record(version, size, mtime_ns, sha256)), "place": list(place)}), encoding="utf-8")
        fresh.replace(record)
        return self.path(place)

    def _stat(self, place: Sequence[str]) -> os.stat_result | None:
        """Return what lies at a place; None when it is missing or no regular file."""
        try:
            with self._folder(place[:-1], create=False) as folder:
                found = os.stat(place[-1], dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISLNK(found.st_mode):
            raise _link_in_the_way(self.path(place))
        return found if stat.S_ISREG(found.st_mode) else None

    def _record(self, place: Sequence[str]) -> Record | None:
        try:
            content = json.loads(self._own_path("records", place).read_text(encoding="utf-8"))
            return Record(content["version"], content["size"], content["mtime_ns"], content["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    @contextmanager
    def _folder(self, parts: Sequence[str], create: bool) -> Iterator[int]:
        """Open the folder, component by component, following no symbolic link."""
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for depth, name in enumerate(parts):
                inner = self._step(descriptor, name, self.root.joinpath(*parts[: depth + 1]), create)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def _step(folder: int, name: str, path: Path, create: bool) -> int:
        """Open the folder `name` in `folder`, making it if asked to; a file from before in its place is removed."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=folder)
        try:
            return os.open(name, flags, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise _link_in_the_way(path) from error
            if not create:
                raise
        os.unlink(name, dir_fd=folder)
        os.mkdir(name, dir_fd=folder)
        return os.open(name, flags, dir_fd=folder)

    @contextmanager
    def _own(self, kind: str, place: Sequence[str], flags: int) -> Iterator[int]:
        """Open the lock or the part of a place."""
        path = self._own_path(kind, place)
        try:
            descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link_in_the_way(path) from error
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _own_path(self, kind: str, place: Sequence[str]) -> Path:
        return self.root / OWN_FOLDER / kind / hashlib.sha256("/".join(place).encode()).hexdigest()


def check_place(place: Sequence[str], subject: str) -> None:
    """Refuse a place that would lie outside its folder, or that no file system can hold.

    Raises:
        RewardFLError: it does (UnsafePath, exit code 65).
    """
    for name in place:
        if name in ("", ".", "..") or "/" in name or any(character < FIRST_PRINTABLE for character in name):
            raise unsafe(f"{subject}: the key has a part {name!r}, which is no file name", "Rename the object.")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise unsafe(f"{subject}: the key has a part of more than {MAX_NAME_BYTES} bytes", "Rename the object.")


def unsafe(message: str, hint: str) -> RewardFLError:
    """Return the error for a name or link that is refused."""
    return RewardFLError(Reason.UNSAFE_PATH, message, hint, ExitCode.BAD_DATA)


def _link_in_the_way(path: Path) -> RewardFLError:
    return unsafe(f"cache_dir: {path} is a symbolic link", REMOVE_HINT)
