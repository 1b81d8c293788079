"""What the cache holds, how much of it, when it was last used and by whom. Looks, and removes nothing."""

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rewardfl_trainer.staging.cache import BLOBS, STAT_BLOCK_BYTES, VIEWS, Cache
from rewardfl_trainer.staging.folders import FRESH
from rewardfl_trainer.staging.leases import DEAD_AFTER_SECONDS, Lease, Need, live, time_of_the_volume
from rewardfl_trainer.staging.views import ASIDE, read_manifest


class Kind(StrEnum):
    """What an entry is."""

    CONTENT = "content"
    VIEW = "view"
    PART = "part"
    LEFTOVER = "leftover"


@dataclass(frozen=True)
class Entry:
    """Something in the cache that can be removed by itself.

    Attributes:
        kind: what it is.
        name: SHA-256 of a content, id of a view, file name of the others.
        size: bytes that removing it gives back; 0 for a view of hard links.
        last_used_ns: by the volume's time.
        used_by: holders of live leases that use it.
    """

    kind: Kind
    name: str
    size: int
    last_used_ns: int
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Survey:
    """The entries of a cache, and what live leases are still going to fetch.

    Attributes:
        entries: all of them.
        views_of: the views that name each content.
        coming: the bytes of each place that is being fetched, by its name; its part is no entry.
        coming_on_disk: bytes of these that their parts have taken already.
        now_ns: the volume's time.
    """

    entries: list[Entry]
    views_of: dict[str, list[str]]
    coming: dict[str, int]
    coming_on_disk: int
    now_ns: int

    @property
    def bytes_used(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size for entry in self.entries)

    def unused(self) -> list[Entry]:
        """Return what nobody uses, the least recently used first."""
        return sorted((entry for entry in self.entries if not entry.used_by), key=lambda entry: entry.last_used_ns)


def survey(cache: Cache) -> Survey:
    """Look at everything in the cache. To act on it, hold the gate."""
    leases = live(cache.own)
    now_ns = time_of_the_volume(cache.own)
    users: defaultdict[str, set[str]] = defaultdict(set)
    coming: dict[str, int] = {}
    for lease in leases:
        for place, need in lease.needs.items():
            if (sha256 := _come(cache, place, need)) is not None:
                users[sha256].add(lease.holder)  # who waits for it is about to find it
            else:
                coming[place] = need.size
    last_used: dict[str, int] = {}
    views_of: defaultdict[str, list[str]] = defaultdict(list)
    views = list(_views(cache, leases, users, last_used, views_of))
    for lease in leases:
        for sha256 in lease.contents:
            users[sha256].add(lease.holder)
    contents = [
        Entry(
            Kind.CONTENT,
            path.name,
            status.st_size,
            max(last_used.get(path.name, 0), status.st_atime_ns),
            tuple(sorted(users[path.name])),
        )
        for folder in _folders(cache.root / BLOBS)
        for path, status in _files(folder)
    ]
    parts = list(_files(cache.own / "parts"))
    orphans = [_of_file(Kind.PART, path, status) for path, status in parts if _place_of(path) not in coming]
    coming_on_disk = sum(status.st_blocks * STAT_BLOCK_BYTES for path, status in parts if _place_of(path) in coming)
    return Survey([*contents, *views, *orphans, *_leftovers(cache, now_ns)], dict(views_of), coming, coming_on_disk, now_ns)


def _come(cache: Cache, place: str, need: Need) -> str | None:
    """Return the content that a lease still waits for, when another stager has fetched it by now."""
    source = cache.source_named(place)
    if source is None or source.version != need.version or not cache.is_intact(source.sha256, need.size):
        return None
    return source.sha256


def _views(
    cache: Cache,
    leases: Iterable[Lease],
    users: dict[str, set[str]],
    last_used: dict[str, int],
    views_of: dict[str, list[str]],
) -> Iterator[Entry]:
    """Yield the views, and note for their contents who uses them, when they were used, and where they are named."""
    names = {path.name for path in _folders(cache.root / VIEWS)} | {path.name for path, _ in _files(cache.own / "views")}
    for name in sorted(name for name in names if not name.startswith(ASIDE) and not name.endswith(FRESH)):
        holders = {lease.holder for lease in leases if name in lease.views}
        used_ns = _mtime_ns(cache.own / "views" / name) or _mtime_ns(cache.root / VIEWS / name)
        manifest = read_manifest(cache, name)
        for sha256 in set(manifest.files.values()) if manifest is not None else ():
            users[sha256] |= holders
            views_of[sha256].append(name)
            last_used[sha256] = max(last_used.get(sha256, 0), used_ns)
        yield Entry(Kind.VIEW, name, manifest.copied_bytes if manifest is not None else 0, used_ns, tuple(sorted(holders)))


def _leftovers(cache: Cache, now_ns: int) -> Iterator[Entry]:
    """Yield the folders in which a view was being built, or removed, by somebody who must be gone by now."""
    for path in _folders(cache.root / VIEWS):
        used_ns = _mtime_ns(path)
        if path.name.startswith(ASIDE) and now_ns - used_ns > DEAD_AFTER_SECONDS * 1e9:
            yield Entry(Kind.LEFTOVER, path.name, 0, used_ns)


def _of_file(kind: Kind, path: Path, status: os.stat_result) -> Entry:
    return Entry(kind, path.name, status.st_blocks * STAT_BLOCK_BYTES, status.st_mtime_ns)


def _place_of(part: Path) -> str:
    """Return the name of the place that a file in the folder of parts is about."""
    return part.name.partition(".")[0]


def _mtime_ns(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return [folder / entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the regular files of a folder; one that goes meanwhile is left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    yield folder / entry.name, status
