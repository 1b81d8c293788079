"""Caches for the tests of staging, filled and used as stagers do it."""

import os
from hashlib import sha256
from pathlib import Path

from rewardfl_api.uris import parse_source
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.leases import DEAD_AFTER_SECONDS, Lease
from rewardfl_trainer.staging.remote import RemoteFile
from rewardfl_trainer.staging.room import Limit, reserve
from rewardfl_trainer.staging.sources import Kind, Request

REQUEST = Request("training.model_paths", "s3://bucket/x", Kind.MODEL, parse_source("s3://bucket/x"))


def place(key: str, scheme: str = "s3") -> tuple[str, ...]:
    return (scheme, "endpoint", "bucket", *key.split("/"))


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def put(cache: Cache, key: str, content: bytes, version: str = "v1") -> Path:
    """Do what a fetcher does."""
    where = place(key)
    with cache.lock(where, lambda: None):
        cache.part_path(where).write_bytes(content)
    return cache.commit(where, version, len(content), sha256=digest(content))


def wanted(*sizes: tuple[str, int]) -> dict[tuple[str, ...], RemoteFile]:
    return {place(key): RemoteFile(REQUEST, key, size, "v1") for key, size in sizes}


def opened(root: Path, holder: str = "team/job on pod-0") -> Cache:
    """The cache as a stager opens it."""
    cache = Cache(root)
    cache.lease = Lease.new(cache.own, holder)
    return cache


def let_die(lease: Lease | None) -> None:
    """Make a lease look as if its holder had been killed long ago."""
    assert lease is not None
    past = lease.path.stat().st_mtime - DEAD_AFTER_SECONDS - 1
    os.utime(lease.path, (past, past))


def use_long_ago(cache: Cache, content: bytes, seconds: float) -> None:
    blob = cache.blob_path(digest(content))
    status = blob.stat()
    os.utime(blob, ns=(status.st_atime_ns - int(seconds * 1e9), status.st_mtime_ns))


def reserve_for(cache: Cache, limit: int | None, *sizes: tuple[str, int]) -> set[tuple[str, ...]]:
    assert cache.lease is not None
    return reserve(cache, cache.lease, wanted(*sizes), None if limit is None else Limit(f"{limit}", limit))
