"""Writes results to `output` and reads them back: an s3:// folder or a local one, each file whole or not at all."""

import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import botocore.exceptions
from boto3.s3.transfer import TransferConfig

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.spec import Storage as StorageSpec
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import Source, parse_source
from rewardfl_trainer.s3 import Patience, endpoint_of, make_client
from rewardfl_trainer.storage_errors import HTTP_FORBIDDEN, HTTP_NOT_FOUND, missing_object, status_of, storage_errors
from rewardfl_trainer.upload_checksums import protect

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 16 * 2**20
UPLOAD_THREADS = 4
MARKER_NAME = ".rewardfl-write-test"
MARKER_BODY = b"rewardfl checks that it may write here; this object is deleted at once\n"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A file that is stored: its size, and when it was written (seconds since the epoch)."""

    bytes: int
    written: float


@dataclass(frozen=True)
class Storage:
    """Writes to s3:// URIs of one S3 service, and to local paths.

    Every error names `parameter`, the field that the user has to change.
    """

    spec: StorageSpec
    parameter: str = "output"

    @classmethod
    def from_config(cls, config: TrainerConfig) -> "Storage":
        """Return the storage that `config` names. Connects to nothing yet."""
        return cls(config.storage)

    @cached_property
    def client(self) -> "S3Client":
        """The S3 client, made on first use."""
        client = make_client(self.spec, self.parameter)
        protect(client, Patience.from_environment().attempts, with_md5=self.spec.endpoint is not None)
        return client

    def check_writable(self, folder: str) -> None:
        """Write and delete a small marker in `folder`, so that a job fails before it trains and not after.

        Raises:
            RewardFLError: bucket missing (exit code 66), refused (78), unavailable (69), folder not writable (74).
        """
        uri = join(folder, MARKER_NAME)
        source = self._parse(uri)
        if not source.is_remote:
            _check_folder(Path(folder), self.parameter)
            return
        with storage_errors(self.parameter, folder, endpoint_of(self.client)):
            self._check_bucket(source.location)
            self.client.put_object(Bucket=source.location, Key=source.path, Body=MARKER_BODY)
            try:
                self.client.delete_object(Bucket=source.location, Key=source.path)
            except botocore.exceptions.ClientError as error:
                if status_of(error) != HTTP_FORBIDDEN:
                    raise
                logger.warning("%s=%s: may be written but not deleted from; %s stays there", self.parameter, folder, MARKER_NAME)

    def upload_file(self, local: Path, uri: str) -> str:
        """Copy the file `local` to `uri` and return `uri`. What stood there stays until the new file is whole.

        Raises:
            RewardFLError: as check_writable, or the object is not what was sent (exit code 74). The local file is untouched.
        """
        source = self._parse(uri)
        if not source.is_remote:
            _copy_whole(local, Path(source.path))
            return uri
        size = local.stat().st_size
        with storage_errors(self.parameter, uri, endpoint_of(self.client)):
            self.client.upload_file(str(local), source.location, source.path, Config=_transfer_config())
            found = self.client.head_object(Bucket=source.location, Key=source.path)["ContentLength"]
        if found != size:
            raise RewardFLError(
                Reason.IO_FAILED,
                f"{self.parameter}={uri}: holds {found} bytes after the upload of {size}",
                "Check whether something else writes to this object.",
                ExitCode.IO_ERROR,
            )
        return uri

    def upload_folder(self, local: Path, uri: str) -> list[str]:
        """Copy every file below the folder `local` to the same place below `uri`; return their URIs, sorted.

        Each file is whole or not there; a file whose presence says that the folder is complete must be uploaded after it.
        """
        files = sorted(path for path in local.rglob("*") if path.is_file() and not path.is_symlink())
        return [self.upload_file(path, join(uri, path.relative_to(local).as_posix())) for path in files]

    def list_files(self, folder: str) -> dict[str, int]:
        """Return name and size of every file below `folder`; names that would lead outside of it are left out.

        Raises:
            RewardFLError: as check_writable. A local folder that does not exist is empty.
        """
        return {name: entry.bytes for name, entry in self.entries(folder).items()}

    def entries(self, folder: str) -> dict[str, Entry]:
        """Return every file below `folder` by its name; names that would lead outside of it are left out.

        Raises:
            RewardFLError: as check_writable. A local folder that does not exist is empty.
        """
        source = self._parse(folder)
        if not source.is_remote:
            root = Path(source.path)
            paths = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
            return {path.relative_to(root).as_posix(): Entry(path.stat().st_size, path.stat().st_mtime) for path in paths}
        prefix = f"{source.path.rstrip('/')}/"
        found: dict[str, Entry] = {}
        with storage_errors(self.parameter, folder, endpoint_of(self.client)):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=source.location, Prefix=prefix):
                for item in page.get("Contents", []):
                    found[item["Key"].removeprefix(prefix)] = Entry(item["Size"], item["LastModified"].timestamp())
        return {name: entry for name, entry in found.items() if name and _is_contained(name)}

    def download_file(self, uri: str, local: Path, tell: Callable[[int], object] | None = None) -> Path:
        """Copy the file at `uri` to `local`, whole or not at all, and return `local`.

        Args:
            uri: where it is.
            local: file to write.
            tell: called with the number of bytes whenever some have come from S3, from threads; what it raises ends the copy.

        Raises:
            RewardFLError: as check_writable; it does not exist (exit code 66).
        """
        source = self._parse(uri)
        local.parent.mkdir(parents=True, exist_ok=True)
        if not source.is_remote:
            if not Path(source.path).is_file():
                raise missing_object(f"{self.parameter}={uri}")
            _copy_whole(Path(source.path), local)
            return local
        with storage_errors(self.parameter, uri, endpoint_of(self.client)):
            self.client.download_file(source.location, source.path, str(local), Config=_transfer_config(), Callback=tell)
        return local

    def abort_uploads(self, folder: str, is_own: Callable[[str], bool]) -> list[str]:
        """Abort the multipart uploads below `folder` that were begun and not finished; return the names of their files.

        Args:
            folder: where to look.
            is_own: whether a name in the folder is one that may be aborted.

        Raises:
            RewardFLError: as check_writable; also where this may not be listed.
        """
        source = self._parse(folder)
        if not source.is_remote:
            return []
        prefix, aborted = f"{source.path.rstrip('/')}/", []
        with storage_errors(self.parameter, folder, endpoint_of(self.client)):
            for page in self.client.get_paginator("list_multipart_uploads").paginate(Bucket=source.location, Prefix=prefix):
                for upload in page.get("Uploads", []):
                    name = upload["Key"].removeprefix(prefix)
                    if upload["Key"].startswith(prefix) and is_own(name):
                        self.client.abort_multipart_upload(Bucket=source.location, Key=upload["Key"], UploadId=upload["UploadId"])
                        aborted.append(name)
        return aborted

    def delete_folder(self, folder: str, first: str) -> None:
        """Delete every file below `folder`, the one named `first` before the others. Nothing need be there.

        Raises:
            RewardFLError: as check_writable.
        """
        source = self._parse(folder)
        if not source.is_remote:
            (Path(source.path) / first).unlink(missing_ok=True)
            shutil.rmtree(source.path, ignore_errors=True)
            return
        names = self.list_files(folder)
        with storage_errors(self.parameter, folder, endpoint_of(self.client)):
            for name in sorted(names, key=lambda name: name != first):
                self.client.delete_object(Bucket=source.location, Key=f"{source.path.rstrip('/')}/{name}")

    def _check_bucket(self, bucket: str) -> None:
        """Raise when the bucket is not there; some services would make it. A refusal to answer says nothing about that."""
        try:
            self.client.head_bucket(Bucket=bucket)
        except botocore.exceptions.ClientError as error:
            if status_of(error) == HTTP_NOT_FOUND:
                error.response["Error"]["Code"] = "NoSuchBucket"  # the answer to HEAD has no body that says so
                raise

    def _parse(self, uri: str) -> Source:
        """Parse a place to write to.

        Raises:
            RewardFLError: it is neither an s3:// URI with a key nor a local path (exit code 78).
        """
        try:
            source = parse_source(uri)
        except ValueError as error:
            raise self._bad(uri, str(error)) from error
        if source.scheme not in ("s3", "file") or not source.path:
            raise self._bad(uri, "results can be written to an s3://bucket/key or to a path")
        return source

    def _bad(self, uri: str, why: str) -> RewardFLError:
        return RewardFLError(
            Reason.BAD_CONFIGURATION, f"{self.parameter}={uri}: {why}", "Use s3://bucket/folder/.", ExitCode.BAD_CONFIGURATION
        )


def join(folder: str, name: str) -> str:
    """Return the URI or path of `name` in `folder`."""
    return f"{folder.rstrip('/')}/{name}"


def _is_contained(name: str) -> bool:
    """Whether a name stays inside the folder that it is joined to."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _transfer_config() -> TransferConfig:
    return TransferConfig(
        multipart_threshold=PART_BYTES,
        multipart_chunksize=PART_BYTES,
        max_concurrency=UPLOAD_THREADS,
        preferred_transfer_client="classic",
    )


def _check_folder(folder: Path, parameter: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / f"{MARKER_NAME}-{uuid.uuid4().hex}"
        marker.write_bytes(MARKER_BODY)
        marker.unlink()
    except OSError as error:
        message = f"{parameter}={folder}: {error.strerror or error}"
        raise RewardFLError(Reason.IO_FAILED, message, "Name a folder that can be written to.", ExitCode.IO_ERROR) from error


def _copy_whole(local: Path, target: Path) -> None:
    """Copy through a temporary file beside the target, and rename it when it is on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    try:
        with local.open("rb") as source, part.open("xb") as copy:
            shutil.copyfileobj(source, copy, PART_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
