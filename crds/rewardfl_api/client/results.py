"""What a job has stored in its output: lists, reads and fetches it, by the code that its pods store it with.

The credentials are the caller's own, boto3's chain; the Secret that the job names is not read. Where the output is, only the
job's spec says: its status comes from its pods, which could name any other place that the caller may read.
"""

import fnmatch
import importlib
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pydantic import ValidationError

from .. import spec as api
from ..errors import ExitCode, Reason, RewardFLError
from ..metrics import StepMetrics, of_text
from ..schema import shorten
from .errors import ClientError, ConfigurationError, MissingExtraError, NotFoundError
from .halt import Halt
from .view import Job

if TYPE_CHECKING:
    from rewardfl_trainer.storage import Storage

METRICS_FILE, REPORT_FILE = "metrics.jsonl", "report.html"
SAME_TIME_SECONDS = 1.0
"""File systems keep times more or less exactly."""

LONGEST_PART_BYTES = 255 - len(".12345678")
"""Of a name, between two slashes: what file systems take, less what boto3 appends while a file is not whole."""


@dataclass(frozen=True)
class StoredFile:
    """A file in a job's output.

    Attributes:
        name: its place below the output, e.g. `checkpoints/step-10/lora.safetensors`.
        bytes: its size.
        written: when.
    """

    name: str
    bytes: int
    written: datetime


class Results:
    """The output of a job.

    Args:
        job: whose.
        endpoint: where its S3 service is reached from here, where that is not spec.storage.endpoint.
        halt: ends what is being fetched.

    Raises:
        MissingExtraError: boto3 is not installed.
        ClientError: the job's spec cannot be read by this version.
    """

    def __init__(self, job: Job, endpoint: str | None = None, halt: Halt | None = None) -> None:
        if job.spec is None:
            raise ClientError(
                f"the spec of {job.name} cannot be read by this version", "install the operator's version of rewardfl"
            )
        self._job, self._output, self._halt = job, job.spec.output.rstrip("/"), halt or Halt()
        spec = job.spec.storage if endpoint is None else job.spec.storage.copy_with(endpoint=endpoint)
        try:
            module = importlib.import_module("rewardfl_trainer.storage")
        except ImportError as error:
            what = f"the results of a job are read with {error.name}, which is not installed"
            raise MissingExtraError(what, "pip install 'rewardfl[client]'") from error
        self._storage: Storage = module.Storage(spec, "spec.output")

    def files(self) -> list[StoredFile]:
        """Return what is there, by name, without names that would lead out of a folder, or that no folder can hold.

        Raises:
            RewardFLError: the storage cannot be read.
        """
        entries = sorted(self._storage.entries(f"{self._output}/").items())
        folders = {str(folder) for name, _ in entries if _is_plain(name) for folder in PurePosixPath(name).parents}
        return [
            StoredFile(name, entry.bytes, datetime.fromtimestamp(entry.written, UTC))
            for name, entry in entries
            if _is_plain(name) and name not in folders
        ]

    def metrics(self) -> list[StepMetrics]:
        """Return the steps that are stored, in order: those up to the last checkpoint.

        Raises:
            RewardFLError: the storage cannot be read.
        """
        with tempfile.TemporaryDirectory() as scratch:
            try:
                local = self._whole(METRICS_FILE, Path(scratch) / METRICS_FILE)
            except RewardFLError as error:
                if error.reason is Reason.OBJECT_NOT_FOUND:
                    return []
                raise
            return of_text(local.read_text(encoding="utf-8", errors="replace"))

    def report(self, target: Path) -> Path:
        """Fetch the report and return where it is.

        Raises:
            NotFoundError: there is none yet.
            RewardFLError: the storage cannot be read.
        """
        try:
            return self._whole(REPORT_FILE, target)
        except RewardFLError as error:
            if error.reason is Reason.OBJECT_NOT_FOUND:
                hint = f"it is made at the first checkpoint; see rewardfl describe {self._job.name}"
                raise NotFoundError(f"{self._job.name} has no report yet in {self._output}", hint) from error
            raise

    def download(self, folder: Path, patterns: Iterable[str], tell: Callable[[Path], object] | None = None) -> list[Path]:
        """Fetch files to a folder and return where they are; see `Client.download`."""
        wanted = tuple(patterns)
        there = self.files()
        chosen = [file for file in there if not wanted or any(_is_meant(file.name, pattern) for pattern in wanted)]
        if not chosen:
            what = f"nothing that is called {' or '.join(wanted)}" if there and wanted else "nothing"
            raise NotFoundError(f"{self._job.name} has stored {what} in {self._output}", f"it has {len(there)} files")
        folder.mkdir(parents=True, exist_ok=True)
        fetched = []
        for file in chosen:
            self._halt.check()
            fetched.append(self._fetch(file, folder))
            if tell is not None:
                tell(fetched[-1])
        return fetched

    def _fetch(self, file: StoredFile, folder: Path) -> Path:
        """Fetch a file, unless it is there already, with the time at which it was written: by that it is known the next time."""
        target = folder / file.name
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            message = f"{target}: a link on the way to it leads out of {folder}."
            raise RewardFLError(Reason.UNSAFE_PATH, message, "Name another folder.", ExitCode.BAD_CONFIGURATION)
        if not _is_there(file, target):
            self._whole(file.name, target)
            os.utime(target, (file.written.timestamp(), file.written.timestamp()))
        return target

    def _whole(self, name: str, target: Path) -> Path:
        """Fetch a file, whole or not at all. Ends with the halt: within a file, too."""
        return self._storage.download_file(f"{self._output}/{name}", target, lambda _: self._halt.check())


def checked_endpoint(endpoint: str | None) -> str | None:
    """Return the URL of an S3 service.

    Raises:
        ConfigurationError: it is none.
    """
    try:
        return api.Storage(endpoint=endpoint).endpoint
    except ValidationError as error:
        message = f"endpoint={shorten(endpoint)}: must be the URL of an S3 service without a path and credentials"
        raise ConfigurationError(message, "write it as https://s3.example.com or http://127.0.0.1:9000") from error


def _is_plain(name: str) -> bool:
    """Whether a name is that of one file in a folder: no part of it is empty, a dot or too long."""
    return str(PurePosixPath(name)) == name and all(len(part.encode()) <= LONGEST_PART_BYTES for part in name.split("/"))


def _is_meant(name: str, pattern: str) -> bool:
    """Whether a pattern means a file: by its name, with * and ?, or by a folder that it is in."""
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('/')}/")


def _is_there(file: StoredFile, target: Path) -> bool:
    if target.is_symlink() or not target.is_file():
        return False
    found = target.stat()
    return found.st_size == file.bytes and abs(found.st_mtime - file.written.timestamp()) < SAME_TIME_SECONDS
