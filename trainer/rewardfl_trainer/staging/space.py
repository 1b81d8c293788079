"""Room on the cache volume: whether there is enough before anything is fetched, and what is done when it ends meanwhile."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.meter import FileMeter
from rewardfl_trainer.staging.plan import Plan
from rewardfl_trainer.staging.remote import RemoteFile
from rewardfl_trainer.storage_errors import ObjectChangedError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class MismatchError(Exception):
    """The content does not match the checksum that the storage announced."""


def check_disk(plan: Plan, cache: Cache) -> None:
    """Refuse to begin when what is missing does not fit.

    Raises:
        RewardFLError: needed and free bytes (DiskTooSmall, exit code 74).
    """
    missing = [p for p in plan.files.values() if not cache.is_current(p.place, p.file.version, p.file.size)]
    needed = sum(planned.file.size for planned in missing)
    if needed > free_bytes(cache) and needed > free_bytes(cache) + sum(cache.part_bytes(planned.place) for planned in missing):
        raise disk_too_small(cache, needed, "before anything was fetched")


@contextmanager
def arriving(cache: Cache, place: tuple[str, ...], file: RemoteFile, meter: FileMeter) -> Iterator[None]:
    """Fetch a file in the block; when that fails, its bytes no longer count, and what cannot be gone on with is removed.

    Raises:
        RewardFLError: the disk is full (DiskTooSmall), or what the block raises.
    """
    try:
        yield
    except BaseException as error:
        meter.take_back()
        is_full = isinstance(error, OSError) and error.errno in _DISK_FULL
        if is_full or isinstance(error, ObjectChangedError | MismatchError):
            cache.discard_part(place)
        if is_full:
            raise disk_too_small(cache, file.size, f"while {file.subject} was written") from error
        raise


def disk_too_small(cache: Cache, needed: int, when: str) -> RewardFLError:
    """Return the error for a cache volume that is too small."""
    return RewardFLError(
        Reason.DISK_TOO_SMALL,
        f"cache_dir={cache.root}: {needed} bytes are needed and {free_bytes(cache)} are free, found {when}",
        "Use a larger cache volume, or make room in it with `rewardfl cache prune`.",
        ExitCode.IO_ERROR,
    )


def free_bytes(cache: Cache) -> int:
    """Return the bytes that this user may still write to the cache volume."""
    found = os.statvfs(cache.root)
    return found.f_bavail * found.f_frsize
