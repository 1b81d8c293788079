"""What staging needs of a kind of storage: to look for files, and to read ranges of them. Knows no storage in particular."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rewardfl_api.errors import RewardFLError
from rewardfl_trainer.staging.sources import Request

DigestKind = Literal["md5", "sha256", "sha1", "crc32", "crc32c", "crc64nvme", "git-sha1"]

BLOCK_BYTES = 2**20
"""Size of the pieces in which content is read."""


@dataclass(frozen=True)
class Digest:
    """A checksum of the whole content in hexadecimal digits, as the storage announces it. git-sha1 is that of a git blob."""

    kind: DigestKind
    value: str


@dataclass(frozen=True)
class RemoteFile:
    """A file as the storage announced it."""

    request: Request
    """The request that it was found for."""
    key: str
    """Its key in the bucket, or its path in the repository."""
    size: int
    """Bytes."""
    version: str
    """ETag, or whatever else changes with the content."""
    digest: Digest | None = None
    """Checksum of the content, where the listing has one. Of S3's ETag only the service can say whether it is one."""

    @property
    def subject(self) -> str:
        """The beginning of every message about this file."""
        text = self.request.text
        return self.request.subject if text.endswith(self.key) else f"{self.request.subject}: {self.key}"


class InterruptedReadError(Exception):
    """The content stopped coming. Worth another try from where it stopped.

    Args:
        final: the error for the user when no try is left.
    """

    def __init__(self, final: RewardFLError) -> None:
        super().__init__(str(final))
        self.final = final


class Remote(Protocol):
    """A kind of storage. Safe to use from several threads.

    Every method raises RewardFLError, naming the request's parameter, when the storage refuses or cannot be reached.
    """

    def stat(self, request: Request, key: str) -> RemoteFile | None:
        """Return the file with exactly this key; None when there is none."""
        ...

    def list(self, request: Request, prefix: str) -> list[RemoteFile]:
        """Return every file whose key begins with `prefix`, sorted by key."""
        ...

    def place(self, file: RemoteFile) -> tuple[str, ...]:
        """Return the folders and the name, below the cache folder, under which the file is kept."""
        ...

    def read(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        """Fill `into` with the content from byte `start` on; yield how many bytes each step brought.

        Raises:
            InterruptedReadError: they stopped coming.
            ObjectChangedError: the file is no longer the one that was announced.
        """
        ...

    def digests(self, file: RemoteFile) -> Sequence[Digest]:
        """Return the checksums that the content is certain to have. A file of one range has been read when this is asked."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...
