"""The checksums of a content, computed while it arrives, and what they are compared with. Reads no file."""

import hashlib
import importlib
import zlib
from collections.abc import Callable, Iterable
from typing import Protocol

from rewardfl_trainer.staging.remote import Digest, DigestKind

SHA256: DigestKind = "sha256"


class _State(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class Sums:
    """The SHA-256 of a content, and whatever else the storage announced for it. None of these guards against an attacker.

    Args:
        size: bytes of the content.
        announced: the checksums that it is to have.
    """

    def __init__(self, size: int, announced: Iterable[Digest]) -> None:
        self._announced = tuple(announced)
        kinds = {SHA256, *(digest.kind for digest in self._announced)}
        self._states: dict[DigestKind, _State] = {kind: new_state(kind, size) for kind in kinds}

    def update(self, data: memoryview) -> None:
        """Add the next bytes."""
        for state in self._states.values():
            state.update(data)

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was added, in hexadecimal digits."""
        return self._states[SHA256].hexdigest()

    def wrong(self) -> list[DigestKind]:
        """Return the kinds of checksum that are not what was announced."""
        return [digest.kind for digest in self._announced if self._states[digest.kind].hexdigest() != digest.value]


def new_state(kind: DigestKind, size: int) -> _State:
    """Return the state of a checksum of content of this size."""
    if kind in ("crc32", "crc32c", "crc64nvme"):
        return _Crc(kind)
    state = hashlib.new({"git-sha1": "sha1"}.get(kind, kind), usedforsecurity=False)
    if kind == "git-sha1":
        state.update(f"blob {size}\0".encode())
    return state


class _Crc:
    """A cyclic redundancy check, of which its function goes on from the value before."""

    def __init__(self, kind: DigestKind) -> None:
        self._value, self._digits = 0, 16 if kind == "crc64nvme" else 8
        # an optional import of botocore's as well; only this part of it is loaded late
        module = zlib if kind == "crc32" else importlib.import_module("awscrt.checksums")
        self._next: Callable[[memoryview, int], int] = getattr(module, kind)

    def update(self, data: memoryview, /) -> None:
        self._value = self._next(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:0{self._digits}x}"
