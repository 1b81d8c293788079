"""The last file of a checkpoint: its other files with size and SHA-256. A folder without it is no checkpoint."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError, field_validator

from rewardfl_api.base import ApiModel

from .disk import sha256_of

MANIFEST_FILE = "manifest.json"
HASH_THREADS = 4


class ManifestError(Exception):
    """A folder is not the checkpoint that its manifest describes, or has none."""


class File(ApiModel):
    """A file of a checkpoint."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """Its path in the checkpoint's folder."""
    bytes: Annotated[int, Field(ge=0)]
    """Its size."""
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
    """Of its content."""

    @field_validator("name")
    @classmethod
    def check_name(cls, value: str) -> str:
        """A name must not lead outside the folder."""
        path = PurePosixPath(value)
        if path.is_absolute() or ".." in path.parts or "\0" in value:
            raise ValueError(f"name={value!r}: must stay inside the checkpoint's folder")
        return value


class Manifest(ApiModel):
    """What a checkpoint consists of."""

    version: Literal[2] = 2
    """Form of the checkpoint. 1 held weights alone and cannot be resumed from."""
    step: Annotated[int, Field(ge=0)]
    """Optimizer step after which it was made."""
    time: AwareDatetime
    """When it was complete."""
    files: Annotated[list[File], Field(max_length=65536)]
    """Every other file."""

    @classmethod
    def of(cls, folder: Path, step: int) -> "Manifest":
        """Describe every file in a folder."""
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
        with ThreadPoolExecutor(HASH_THREADS) as threads:
            hashes = list(threads.map(sha256_of, paths))
        files = [
            File(name=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=digest)
            for path, digest in zip(paths, hashes, strict=True)
        ]
        return cls(step=step, time=datetime.now(UTC), files=files)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read a manifest.

        Raises:
            ManifestError: there is none, or not one of this version.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise ManifestError(f"{path}: {' '.join(str(error).split())[:200]}") from error

    def verify(self, folder: Path) -> None:
        """Check that every file is there and what it was.

        Raises:
            ManifestError: names the first file that is not.
        """
        for file in self.files:
            path = folder / file.name
            if not path.is_file() or path.stat().st_size != file.bytes:
                raise ManifestError(f"{path}: is missing, or does not have {file.bytes} bytes")
        with ThreadPoolExecutor(HASH_THREADS) as threads:
            for file, digest in zip(self.files, threads.map(lambda file: sha256_of(folder / file.name), self.files), strict=True):
                if digest != file.sha256:
                    raise ManifestError(f"{folder / file.name}: its SHA-256 is not the one in {MANIFEST_FILE}")

    def content(self) -> dict[str, Any]:
        """Return the file's content."""
        return self.to_trainer()
