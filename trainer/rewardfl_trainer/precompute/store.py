"""Precomputed tensors on disk, each entry a safetensors file named by a key over everything that went into it.

    <cache_dir>/.rewardfl/computed/<kind>/<two digits>/<key>.safetensors

An entry is written to a temporary name and renamed, so it is whole or not there; its tensors' SHA-256 stands in its header, so
one that was damaged later is noticed, dropped and made again. No other entry is ever deleted here. Must not know what the tensors
mean.
"""

import contextlib
import errno
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

from ..disk import sync
from ..staging.cache import OWN_FOLDER
from .locks import claim

COMPUTED_FOLDER = "computed"
DIGESTS_FOLDER = "digests"
LOCKS_FOLDER = "locks"
SUFFIX = ".safetensors"
PARTIAL_SUFFIX = ".partial"
STALE_SECONDS = 3600
"""Nobody writes an entry for so long."""

SHARD_DIGITS = 2
"""Leading digits of a key that name its folder and its lock: 256 of each."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Key:
    """Name of an entry.

    Attributes:
        kind: what it holds; a folder of its own.
        digest: SHA-256 over all that went in.
        inputs: the same as JSON, kept in the entry for people who ask why it was made again.
    """

    kind: str
    digest: str
    inputs: str


class Store:
    """The entries below a cache folder.

    Raises:
        RewardFLError: the folder cannot be written to (IoFailed, exit code 74).
    """

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self.folder = cache_dir / OWN_FOLDER / COMPUTED_FOLDER
        self.digests_folder = cache_dir / OWN_FOLDER / DIGESTS_FOLDER
        try:
            (self.folder / LOCKS_FOLDER).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RewardFLError(
                Reason.IO_FAILED,
                f"cache_dir={cache_dir}: {error.strerror}: what is computed before training cannot be kept there.",
                "Name a folder that can be written to, or switch training.cache_conditions, cache_references and cache_prefix"
                " off.",
                ExitCode.IO_ERROR,
            ) from error

    def path(self, key: Key) -> Path:
        """Return where an entry lies."""
        return self.folder / key.kind / key.digest[:SHARD_DIGITS] / f"{key.digest}{SUFFIX}"

    def read(self, key: Key) -> dict[str, Tensor] | None:
        """Return the tensors of an entry, on the CPU; None where there is none. A damaged one is dropped."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                # Copied out of the map: what was verified must not change with the file.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            return self._drop(path, str(error))
        if metadata.get("sha256") != digest_of(tensors):
            return self._drop(path, "its content is not what was written")
        return tensors

    def write(self, key: Key, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry. Several processes may write the same one: the last one's stays, and they are equal.

        Raises:
            RewardFLError: the disk is full (DiskTooSmall), or writing failed (IoFailed); exit code 74.
        """
        path = self.path(key)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
        plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        metadata = {"format": "pt", "sha256": digest_of(plain), "inputs": key.inputs}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_stale(path)
            save_file(plain, partial, metadata=metadata)
            sync(partial)
            partial.replace(path)
            sync(path.parent)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise self._failed(error) from error

    @contextmanager
    def claim(self, key: Key) -> Iterator[bool]:
        """Claim the making of an entry while the block runs; yields False while another process may be at it."""
        with claim(self.folder / LOCKS_FOLDER / key.digest[:SHARD_DIGITS]) as ours:
            yield ours

    def check_room(self, needed: int, switches: str) -> None:
        """Refuse to begin when what is missing does not fit.

        Args:
            needed: bytes.
            switches: the parameters that make it smaller.

        Raises:
            RewardFLError: needed and free bytes (DiskTooSmall, exit code 74).
        """
        if needed > (free := self.free_bytes()):
            raise _too_small(self.cache_dir, f"{needed} bytes are needed for what is computed before training", free, switches)

    def free_bytes(self) -> int:
        """Return the bytes that this user may still write."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def _failed(self, error: Exception) -> RewardFLError:
        """Return the error of a write that failed."""
        if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or "os error 28" in str(error).lower():
            return _too_small(self.cache_dir, "the volume is full", self.free_bytes(), "training.cache_prefix")
        message = f"cache_dir={self.cache_dir}: {error}"
        return RewardFLError(Reason.IO_FAILED, message, "Check the cache volume.", ExitCode.IO_ERROR)

    @staticmethod
    def _drop(path: Path, problem: str) -> None:
        """Remove a damaged entry."""
        logger.warning("%s is damaged and will be made again: %s", path, problem)
        path.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors on the CPU."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _clear_stale(path: Path) -> None:
    """Remove what killed writers of this entry left."""
    for left in path.parent.glob(f".{path.name}.*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.unlink()


def _too_small(cache_dir: Path, what: str, free: int, switches: str) -> RewardFLError:
    """Return the error of a volume that is too small."""
    return RewardFLError(
        Reason.DISK_TOO_SMALL,
        f"cache_dir={cache_dir}: {what}, and {free} are free.",
        f"Use a larger cache volume, remove what is not needed from it, or switch {switches} off.",
        ExitCode.IO_ERROR,
    )
