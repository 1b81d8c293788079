"""Makes room: reserves what a plan needs, and removes what was not used for longest. Never what a live lease names.

The whole of `reserve` happens behind the gate, so that of several stagers each sees what the others are going to fetch.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.cache import VIEWS, Cache, Source, place_name
from rewardfl_trainer.staging.leases import Lease, Need
from rewardfl_trainer.staging.remote import RemoteFile
from rewardfl_trainer.staging.usage import Entry, Kind, Survey, survey
from rewardfl_trainer.staging.views import remove_tree, remove_view

Wanted = Mapping[tuple[str, ...], RemoteFile]
"""The files of a plan, by their places."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limit:
    """The largest size of the cache, as the user wrote it and in bytes."""

    text: str
    size: int


def reserve(cache: Cache, lease: Lease, wanted: Wanted, limit: Limit | None = None) -> set[tuple[str, ...]]:
    """Take what is there into use, make room for the rest, and return the places that have to be fetched.

    Raises:
        RewardFLError: the plan is larger than the limit (BadConfiguration), or running jobs leave too little (DiskTooSmall).
    """
    with cache.gate():
        found = {place: cache.find(place, file.version, file.size, sha256_of(file)) for place, file in wanted.items()}
        missing = {place for place, sha256 in found.items() if sha256 is None}
        if limit is not None:
            _check_plan(wanted, found, limit)
        lease.contents |= {sha256 for sha256 in found.values() if sha256 is not None}
        lease.needs |= {place_name(place): Need(wanted[place].size, wanted[place].version) for place in missing}
        lease.write()
        for place, sha256 in found.items():
            if sha256 is not None:
                cache.use(place, Source(wanted[place].version, wanted[place].size, sha256))
        if missing:
            _make_room_or_withdraw(cache, lease, limit)
    return missing


def _make_room_or_withdraw(cache: Cache, lease: Lease, limit: Limit | None) -> None:
    try:
        make_room(cache, limit)
    except BaseException:
        lease.needs.clear()
        lease.write()
        raise


def sha256_of(file: RemoteFile) -> str | None:
    """Return the SHA-256 of a file where the storage announces it."""
    return file.digest.value if file.digest is not None and file.digest.kind == "sha256" else None


def make_room(cache: Cache, limit: Limit | None) -> None:
    """Remove what is in the way of what live leases are going to fetch. The caller holds the gate.

    Raises:
        RewardFLError: what running jobs use leaves too little of the limit (DiskTooSmall).
    """
    held = survey(cache)
    coming = sum(held.coming.values())
    over = held.bytes_used + coming - limit.size if limit is not None else 0
    unused = sum(entry.size for entry in held.unused())
    if limit is not None and over > unused:
        raise RewardFLError(
            Reason.DISK_TOO_SMALL,
            f"cache.maxSize={limit.text} ({limit.size} bytes): {coming} bytes are to be fetched, and running jobs use"
            f" {held.bytes_used - unused} of the {held.bytes_used} bytes in cache_dir={cache.root}",
            "Wait until a job has ended, raise cache.maxSize of the jobs that share the cache, or use another cache.",
            ExitCode.IO_ERROR,
        )
    free = os.statvfs(cache.root)
    short = coming - held.coming_on_disk - free.f_bavail * free.f_frsize
    freed = remove(cache, held, max(over, short))
    if freed:
        logger.info("removed %d bytes that were not used for longest from %s", freed, cache.root)


def remove(cache: Cache, held: Survey, to_free: float) -> int:
    """Remove unused entries, the least recently used first, until so many bytes are free; return how many are.

    The caller holds the gate.
    """
    freed = 0
    for entry in held.unused():
        if freed >= to_free:
            break
        freed += remove_entry(cache, held, entry) or 0
    return freed


def remove_entry(cache: Cache, held: Survey, entry: Entry) -> int | None:
    """Remove an entry that nobody uses; return the bytes that this gave back, None if it cannot be removed.

    The caller holds the gate.
    """
    try:
        match entry.kind:
            case Kind.CONTENT:
                for view in held.views_of.get(entry.name, []):  # their links would keep its bytes on the disk
                    remove_view(cache, view)
                cache.blob_path(entry.name).unlink(missing_ok=True)
            case Kind.VIEW:
                remove_view(cache, entry.name)
            case Kind.PART:
                (cache.own / "parts" / entry.name).unlink(missing_ok=True)
            case Kind.LEFTOVER:
                remove_tree(cache.root / VIEWS / entry.name)
    except OSError as error:
        logger.warning("%s %s cannot be removed from %s: %s", entry.kind, entry.name, cache.root, error)
        return None
    return entry.size


def _check_plan(wanted: Wanted, found: Mapping[tuple[str, ...], str | None], limit: Limit) -> None:
    """Refuse a plan that does not fit an empty cache of this limit.

    Raises:
        RewardFLError: it does not (BadConfiguration, exit code 78).
    """
    sizes = {found[place] or sha256_of(file) or place_name(place): file.size for place, file in wanted.items()}
    if (needed := sum(sizes.values())) > limit.size:
        raise RewardFLError(
            Reason.BAD_CONFIGURATION,
            f"cache.maxSize={limit.text}: is {limit.size} bytes, and what the job names has {needed}",
            "Raise cache.maxSize to that or more, or name fewer models.",
            ExitCode.BAD_CONFIGURATION,
        )
