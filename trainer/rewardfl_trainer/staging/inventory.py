"""What `rewardfl cache` does with a cache folder: tells what is in it, removes what nobody uses, reads everything once more.

Runs where the cache is, beside the jobs that use it. Fetches nothing.
"""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.cache import BLOBS, OWN_FOLDER, Cache
from rewardfl_trainer.staging.folders import FRESH
from rewardfl_trainer.staging.leases import DEAD_AFTER_SECONDS
from rewardfl_trainer.staging.room import remove_entry
from rewardfl_trainer.staging.usage import Entry, Kind, Survey, survey

OLD_FOLDERS = ("s3", "hf", "ms", f"{OWN_FOLDER}/records")
"""What version 0.2.0 and earlier put into a cache. Nothing reads it any more."""

STAGED_BEFORE = (BLOBS, *OLD_FOLDERS)
"""One of these is in every folder that was ever staged into."""

NANOSECONDS = 1e9


@dataclass(frozen=True)
class Item:
    """An entry as it is told of.

    Attributes:
        kind: content, view, part or leftover; "old" for what an earlier version has left.
        name: SHA-256, id or path.
        bytes: that removing it gives back.
        idle_seconds: since it was last used.
        used_by: who uses it now: namespace/job and pod.
        names: of a content: where it came from.
    """

    kind: str
    name: str
    bytes: int
    idle_seconds: float
    used_by: tuple[str, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What reading everything once more has shown.

    Attributes:
        contents: how many were read.
        bytes: of them.
        corrupt: those that are not what they were.
        removed: those of them that are gone now.
    """

    contents: int
    bytes: int
    corrupt: list[Item]
    removed: list[str]


def open_cache(folder: Path) -> Cache:
    """Return the cache in a folder.

    Raises:
        RewardFLError: there is none (exit code 66), or it cannot be written to.
    """
    if not any((folder / name).is_dir() for name in STAGED_BEFORE):
        message = f"--dir={folder}: is no folder that was staged into."
        raise RewardFLError(
            Reason.BAD_USAGE, message, "Name the folder of cache.hostPath, or where the claim is mounted.", ExitCode.MISSING_INPUT
        )
    return Cache(folder)


def items(cache: Cache) -> list[Item]:
    """Return what is in the cache, the most recently used first, then the largest."""
    with cache.gate():
        held = survey(cache)
    names = _names(cache)
    found = [_item(entry, held, names) for entry in held.entries]
    return sorted([*found, *_old(cache, held.now_ns)], key=lambda item: (item.idle_seconds, -item.bytes))


def prune(cache: Cache, max_bytes: int | None = None, idle_seconds: float = 0.0, *, dry_run: bool = False) -> list[Item]:
    """Remove what nobody uses, the least recently used first; return what was removed.

    Args:
        cache: where.
        max_bytes: stop as soon as no more than this is left. None: at nothing.
        idle_seconds: only what was not used for so long.
        dry_run: remove nothing, and return what would be.
    """
    with cache.gate():
        held = survey(cache)
        old = _old(cache, held.now_ns)
        left = held.bytes_used + sum(item.bytes for item in old)
        names, removed = _names(cache), []
        unused = [(_item(entry, held, names), entry) for entry in held.unused()]
        for item, entry in [*((item, None) for item in old), *unused]:
            if max_bytes is not None and left <= max_bytes:
                break
            if item.idle_seconds < idle_seconds:
                continue
            if not dry_run and not _removed(cache, held, item, entry):
                continue
            left -= item.bytes
            removed.append(item)
        if not dry_run:
            _forget_the_missing(cache, held.now_ns)
    return removed


def verify(cache: Cache, *, remove: bool = False, tell: Callable[[int], None] = lambda _count: None) -> Verified:
    """Read every content and compare it with its name.

    Args:
        cache: where.
        remove: remove what is corrupt, so that the next start fetches it. What a running job has open stays as it is for it.
        tell: is called with the bytes of each content that was read.
    """
    with cache.gate():
        held = survey(cache)
    names = _names(cache)
    contents = [entry for entry in held.entries if entry.kind is Kind.CONTENT]

    def is_right(entry: Entry) -> bool:
        try:
            return _sha256_of(cache.blob_path(entry.name)) == entry.name
        except FileNotFoundError:  # removed meanwhile
            return True
        finally:
            tell(entry.size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        right = list(pool.map(is_right, contents))
    corrupt = [entry for entry, good in zip(contents, right, strict=True) if not good]
    removed = []
    if remove:
        with cache.gate():
            for entry in corrupt:
                cache.blob_path(entry.name).unlink(missing_ok=True)
                removed.append(entry.name)
    return Verified(len(contents), sum(entry.size for entry in contents), [_item(e, held, names) for e in corrupt], removed)


def _sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; where that is allowed, this does not count as a use of it."""

    def unnoticed(name: str, flags: int) -> int:
        try:
            return os.open(name, flags | os.O_NOATIME | os.O_NOFOLLOW)
        except PermissionError:
            return os.open(name, flags | os.O_NOFOLLOW)

    with open(path, "rb", opener=unnoticed) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _item(entry: Entry, held: Survey, names: dict[str, set[str]]) -> Item:
    idle = max(0.0, (held.now_ns - entry.last_used_ns) / NANOSECONDS)
    return Item(entry.kind.value, entry.name, entry.size, idle, entry.used_by, tuple(sorted(names.get(entry.name, ()))))


def _records(cache: Cache) -> Iterator[tuple[Path, str, list[str]]]:
    """Yield the record of each place of a storage: its file, the SHA-256, and the names."""
    for path in (cache.own / "sources").iterdir():
        try:
            content = json.loads(path.read_bytes())
            yield path, str(content["sha256"]), [str(name) for name in content["place"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue


def _names(cache: Cache) -> dict[str, set[str]]:
    """Return where each content came from: s3/<hash of the endpoint>/bucket/key becomes s3://bucket/key."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for _, sha256, place in _records(cache):
        scheme, _endpoint, *rest = place
        names[sha256].add(f"{scheme}://{'/'.join(rest)}")
    return names


def _old(cache: Cache, now_ns: int) -> list[Item]:
    """Return the folders that an earlier version filled."""
    found = []
    for name in OLD_FOLDERS:
        folder = cache.root / name
        if folder.is_dir() and not folder.is_symlink():
            files = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
            used_ns = max((max(status.st_mtime_ns, status.st_atime_ns) for status in files), default=0)
            found.append(Item("old", name, sum(status.st_size for status in files), (now_ns - used_ns) / NANOSECONDS, ()))
    return found


def _removed(cache: Cache, held: Survey, item: Item, entry: Entry | None) -> bool:
    """Remove an entry, or what an earlier version has left; whether that worked."""
    if entry is not None:
        return remove_entry(cache, held, entry) is not None
    shutil.rmtree(cache.root / item.name)
    return True


def _forget_the_missing(cache: Cache, now_ns: int) -> None:
    """Remove the records of contents that are gone, and those that nobody finished. The caller holds the gate.

    A record is written while the gate is held, so one that cannot be read was cut by the end of its writer.
    """
    contents = {path: sha256 for path, sha256, _ in _records(cache)}
    for path in (cache.own / "sources").iterdir():
        if path.suffix != FRESH and (path not in contents or cache.blob_status(contents[path]) is None):
            path.unlink(missing_ok=True)
    for kind in ("sources", "views"):
        for path in (cache.own / kind).glob(f"*{FRESH}"):
            if now_ns - path.lstat().st_mtime_ns > DEAD_AFTER_SECONDS * NANOSECONDS:
                path.unlink(missing_ok=True)
