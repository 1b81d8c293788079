"""The folder that files are staged into: each content once, whatever it is called and wherever it came from.

    <cache>/blobs/<xx>/<sha256>              the contents, read-only
    <cache>/views/<id>/<place...>            the same files under the names that the storage gives them: `views`
    <cache>/.rewardfl/sources/<place>        what lies at a place of the storage: version, size, SHA-256
    <cache>/.rewardfl/parts/<place>          the unfinished content of a place, under a hash of its names
    <cache>/.rewardfl/locks/                 the gate, and a lock for each place: `locks`
    <cache>/.rewardfl/leases/                who uses what: `leases`

No component of a path may be a symbolic link, whoever made it. Several stagers may share the folder: a lock for each place makes
one of them fetch it, and whoever adds or removes contents holds the gate meanwhile.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.disk import sha256_of
from rewardfl_trainer.staging.folders import REMOVE_HINT, opened, opened_file, write_new
from rewardfl_trainer.staging.leases import Lease
from rewardfl_trainer.staging.locks import PlaceLocks
from rewardfl_trainer.staging.part import map_path

OWN_FOLDER = ".rewardfl"
BLOBS, VIEWS = "blobs", "views"
OWN_KINDS = ("locks", "parts", "sources", "leases", "views")
GATE, PLACES = "gate", "places"
"""Names of the lock of all contents, and of the file with those of the places."""

READ_ONLY = 0o444
UNTOUCHED_NS = 10**18
"""The modification time (2001-09-09 01:46:40 UTC) of every content: whoever writes to it gives it another one, which is how an
edited or truncated file is known without reading it. The time of access is that of the last use."""

LOCK_POLL_SECONDS = 0.25
STAT_BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system."""

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)

Place = tuple[str, ...]
"""The names, from the scheme on, under which a file of a storage is known."""


@dataclass(frozen=True)
class Source:
    """What lies at a place of the storage."""

    version: str
    size: int
    sha256: str


class Cache:
    """The cache folder at `root`, which is made if need be.

    Attributes:
        lease: what it is told of every content that this process uses. None: nothing is kept from being removed.
        used: the SHA-256 of the content of each place that was found or put here by this process.

    Raises:
        RewardFLError: it cannot be written to (IoFailed), or a symbolic link is in the way (UnsafePath).
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.root = root.resolve()
            for parts in ((BLOBS,), (VIEWS,), *((OWN_FOLDER, kind) for kind in OWN_KINDS)):
                with opened(self.root, parts, create=True):
                    pass
        except OSError as error:
            if error.errno not in _NOT_OURS:
                raise
            raise _not_writable(root, error) from error
        self.own = self.root / OWN_FOLDER
        if not all(os.access(folder, os.W_OK) for folder in (self.root / BLOBS, self.root / VIEWS, self.own / "leases")):
            raise _not_writable(root, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
        self.lease: Lease | None = None
        self.used: dict[tuple[str, ...], str] = {}
        self._gate = threading.Lock()
        self._locks = PlaceLocks(self.own / "locks" / PLACES)
        self._own, self._blobs, self._sources = str(self.own), str(self.root / BLOBS), str(self.own / "sources")
        self._known_folders: set[str] = set()

    def is_current(self, place: Place, version: str, size: int, sha256: str | None = None) -> bool:
        """Whether the content of a place is there, whole and unchanged since it was put there. If so, it is in use from now on.

        Args:
            place: where the storage has it.
            version: what the storage calls this content.
            size: its bytes.
            sha256: its checksum, where the storage announces it: then it may have come from anywhere.

        Raises:
            RewardFLError: a symbolic link is in the way (UnsafePath).
        """
        found = self.find(place, version, size, sha256)
        if found is None or self.used.get(place) == found:
            return found is not None
        with self.gate():
            found = self.find(place, version, size, sha256)
            if found is not None:
                self.use(place, Source(version, size, found))
        return found is not None

    def find(self, place: Place, version: str, size: int, sha256: str | None = None) -> str | None:
        """Return the SHA-256 of the content of a place if it is there, whole and unchanged; see `is_current`."""
        source = self.source(place)
        known = source.sha256 if source is not None and (source.version, source.size) == (version, size) else sha256
        return known if known is not None and self.is_intact(known, size) else None

    def is_intact(self, sha256: str, size: int | None = None) -> bool:
        """Whether a content is there and looks as it did when it was put there. It is not read."""
        found = self.blob_status(sha256)
        return found is not None and found.st_mtime_ns == UNTOUCHED_NS and size in (None, found.st_size)

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Keep all others from adding and removing contents while the block runs, which is to be short."""
        with self._gate, opened_file(self.own / "locks" / GATE, os.O_RDWR | os.O_CREAT) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield

    @contextmanager
    def lock(self, place: Place, check: Callable[[], None]) -> Iterator[None]:
        """Hold the lock of a place; while somebody else holds it, `check` is called now and then and may raise."""
        name = place_name(place)
        while not self._locks.take(name):
            check()
            time.sleep(LOCK_POLL_SECONDS)
        try:
            yield
        finally:
            self._locks.give(name)

    @contextmanager
    def free_locks(self, places: Iterable[Place]) -> Iterator[set[Place]]:
        """Hold the locks of those of the places that nobody holds; they are what is returned. None is waited for."""
        mine = dict[Place, str]()
        try:
            for place in places:
                name = place_name(place)
                if self._locks.take(name):
                    mine[place] = name
            yield set(mine)
        finally:
            for name in mine.values():
                self._locks.give(name)

    def part_path(self, place: Place) -> Path:
        """Return where the unfinished content of a place lies."""
        return Path(self._own_name("parts", place))

    def part_bytes(self, place: Place) -> int:
        """Return the disk space that unfinished content of a place takes; it is given back when the place is fetched."""
        try:
            return os.lstat(self._own_name("parts", place)).st_blocks * STAT_BLOCK_BYTES
        except FileNotFoundError:
            return 0

    def discard_part(self, place: Place) -> None:
        """Remove the unfinished content of a place."""
        path = self.part_path(place)
        for each in (map_path(path), path):
            each.unlink(missing_ok=True)

    def commit(self, place: Place, version: str, size: int, *, sha256: str | None = None) -> Path:
        """Make the finished content of a place part of the cache and return its file. The caller has flushed it to the disk.

        Args:
            place: where the storage has it.
            version: what the storage calls this content.
            size: its bytes.
            sha256: its checksum, in hexadecimal digits. None: it is computed here, which reads the content once more.
        """
        sha256 = sha256 or sha256_of(self.part_path(place))
        self.commit_all({place: Source(version, size, sha256)})
        return self.blob_path(sha256)

    def commit_all(self, sources: Mapping[Place, Source]) -> None:
        """Make the finished contents of several places part of the cache; see `commit`."""
        if not sources:
            return
        with self.gate():
            if self.lease is not None:
                self.lease.add_contents({place_name(place): source.sha256 for place, source in sources.items()})
            for place, source in sources.items():
                part = self._own_name("parts", place)
                if self.is_intact(source.sha256, source.size):
                    os.unlink(part)  # noqa: PTH108 - pathlib costs more than the call, for each of thousands of files
                else:
                    self._put(part, source.sha256)
                self._note(place, source)

    def _put(self, part: str, sha256: str) -> None:
        """Move a file to where the content with this checksum belongs."""
        os.utime(part, ns=(os.lstat(part).st_mtime_ns, UNTOUCHED_NS))  # what it was, the volume said: no clock of ours
        self._open_blobs(sha256, create=True)
        blob = self.blob_name(sha256)
        try:
            os.rename(part, blob)  # noqa: PTH104 - likewise
        except IsADirectoryError as error:
            message = f"cache_dir: {blob} is a folder where a file has to be"
            raise RewardFLError(Reason.IO_FAILED, message, REMOVE_HINT, ExitCode.IO_ERROR) from error
        # not before: a part that was left must be open to the next stager
        os.chmod(blob, READ_ONLY)  # noqa: PTH101 - likewise

    def use(self, place: Place, source: Source) -> None:
        """Note that this process uses the content that is there for a place. The caller holds the gate."""
        lease, name = self.lease, place_name(place)
        if lease is not None and (source.sha256 not in lease.contents or name in lease.needs):
            lease.add_contents({name: source.sha256})
        if self.source(place) == source:
            self.used[place] = source.sha256
        else:
            self._note(place, source)

    def _note(self, place: Place, source: Source) -> None:
        self.used[place] = source.sha256
        write_new(self._own_name("sources", place), json.dumps({**vars(source), "place": list(place)}))

    def blob_path(self, sha256: str) -> Path:
        """Return the file of a content."""
        return Path(self.blob_name(sha256))

    def blob_status(self, sha256: str) -> os.stat_result | None:
        """Return the status of the file of a content; None when there is none.

        Raises:
            RewardFLError: a symbolic link is in the way (UnsafePath).
        """
        try:
            self._open_blobs(sha256, create=False)
            found = os.stat(self.blob_name(sha256), follow_symlinks=False)  # noqa: PTH116 - likewise
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None

    def _open_blobs(self, sha256: str, *, create: bool) -> None:
        """Look once that the folder of a content is a folder."""
        name = sha256[:2]
        if name not in self._known_folders:
            with opened(self.root, (BLOBS, name), create=create):
                self._known_folders.add(name)

    def blob_name(self, sha256: str) -> str:
        """Return what `blob_path` does, for what is done for each of thousands of files."""
        return f"{self._blobs}/{sha256[:2]}/{sha256}"

    def source(self, place: Place) -> Source | None:
        """Return what is recorded of a place of the storage."""
        return self.source_named(place_name(place))

    def source_named(self, name: str) -> Source | None:
        """Return what is recorded of the place with this name."""
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            with open(f"{self._sources}/{name}", "rb") as file:  # noqa: PTH123 - for each of thousands of files
                content = json.load(file)
            return Source(content["version"], content["size"], content["sha256"])
        return None

    def _own_name(self, kind: str, place: Place) -> str:
        """Return the path of a file that is about a place."""
        return f"{self._own}/{kind}/{place_name(place)}"


@lru_cache(maxsize=65536)
def place_name(place: Place) -> str:
    """Return the name of the files that are about a place."""
    return hashlib.sha256("/".join(place).encode()).hexdigest()


def _not_writable(root: Path, error: OSError) -> RewardFLError:
    return RewardFLError(
        Reason.IO_FAILED,
        f"cache_dir={root}: user {os.getuid()} cannot write there: {error.strerror}",
        f"On the node of a cache.hostPath: `chown -R {os.getuid()}:{os.getgid()}`. A claim must not be mounted read-only. Users"
        " that share a cache need a group in common (fsGroup).",
        ExitCode.IO_ERROR,
    )
