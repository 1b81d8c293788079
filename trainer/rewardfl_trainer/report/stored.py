"""Finds the files that a run has stored, by their names in its output: in a folder, or in object storage. Interprets none."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from rewardfl_api.errors import Reason, RewardFLError

from ..files import SAMPLES_FOLDER
from ..storage import Storage, join


class Stored(Protocol):
    """Where a run's files are."""

    def path(self, name: str) -> Path | None:
        """Return where a file can be read on this machine; None where there is none."""

    def sample_names(self) -> Iterator[str]:
        """Yield the names of the lists of sample videos: samples/before.json."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    root: Path

    def path(self, name: str) -> Path | None:
        """Return the file's place, where it is a file inside the folder."""
        found = self.root / name
        return found if found.is_file() and found.resolve().is_relative_to(self.root.resolve()) else None

    def sample_names(self) -> Iterator[str]:
        """Yield the names of what is in the samples folder."""
        for found in sorted((self.root / SAMPLES_FOLDER).glob("*.json")):
            yield f"{SAMPLES_FOLDER}/{found.name}"


@dataclass(frozen=True)
class Fetched:
    """An output folder in storage. What is asked for is fetched into a folder of this machine; what is there already is taken."""

    storage: Storage
    output: str
    folder: Path

    @cached_property
    def _listed(self) -> dict[str, int]:
        """Name and size of the sample files in storage."""
        names = self.storage.list_files(join(self.output, SAMPLES_FOLDER))
        return {f"{SAMPLES_FOLDER}/{name}": size for name, size in names.items()}

    def path(self, name: str) -> Path | None:
        """Return the file's local copy."""
        if (local := Folder(self.folder).path(name)) is not None:
            return local
        if name.startswith(f"{SAMPLES_FOLDER}/") and name not in self._listed:
            return None
        try:
            return self.storage.download_file(join(self.output, name), self.folder / name)
        except RewardFLError as error:
            if error.reason is Reason.OBJECT_NOT_FOUND:
                return None
            raise

    def sample_names(self) -> Iterator[str]:
        """Yield the names of what is here and in storage."""
        listed = (name for name in self._listed if name.endswith(".json") and name.count("/") == 1)
        yield from sorted({*Folder(self.folder).sample_names(), *listed})
