"""S3 as a source: list, head and ranged reads, each bound to the ETag that was listed."""

import contextlib
import http.client
import re
import ssl
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import botocore.exceptions
import botocore.session

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_trainer.s3 import endpoint_of
from rewardfl_trainer.staging.manifests import Manifests
from rewardfl_trainer.staging.objects import Objects
from rewardfl_trainer.staging.remote import BLOCK_BYTES, Digest, DigestKind, InterruptedReadError, RemoteFile
from rewardfl_trainer.staging.sources import Request
from rewardfl_trainer.storage_errors import (
    HTTP_NOT_FOUND,
    ObjectChangedError,
    missing_bucket,
    status_of,
    storage_errors,
    unavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ENDPOINT_HASH_CHARACTERS = 12
_MD5_ETAG = re.compile(r'^"?([0-9a-f]{32})"?$')
"""The ETag of an object that was uploaded in one part is its MD5, unless the server encrypts it."""

_CHECKSUMS: tuple[DigestKind, ...] = ("sha256", "crc64nvme", "crc32c", "crc32", "sha1")
"""The checksums that S3 may keep, the preferred one first."""

_SSE = "x-amz-server-side-encryption"


class S3Remote:
    """The objects of one S3 service.

    Args:
        client: asks for lists.
        session: the client's, whose credentials the data path uses as well.
    """

    def __init__(self, client: "S3Client", session: botocore.session.Session) -> None:
        self._client = client
        self._endpoint = endpoint_of(client)
        self._objects = Objects(client, session=session)
        self._manifests = Manifests(client)
        self._answered: dict[tuple[str, str], dict[str, str]] = {}

    def stat(self, request: Request, key: str) -> RemoteFile | None:
        """Return the object with this key; None when the bucket has none.

        Raises:
            RewardFLError: bucket missing, access refused, service unavailable.
        """
        bucket = request.source.location
        with storage_errors(request.parameter, request.text, self._endpoint):
            try:
                found = self._client.head_object(Bucket=bucket, Key=key)
            except botocore.exceptions.ClientError as error:
                if status_of(error) != HTTP_NOT_FOUND:
                    raise
                self._check_bucket(request)  # the answer to HEAD has no body that says what is missing
                return None
        return _file(request, key, found["ContentLength"], found["ETag"])

    def list(self, request: Request, prefix: str) -> list[RemoteFile]:
        """Return every object whose key begins with `prefix`; the empty objects that stand for folders are left out.

        Raises:
            RewardFLError: bucket missing, access refused, service unavailable.
        """
        found: list[RemoteFile] = []
        with storage_errors(request.parameter, request.text, self._endpoint):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=request.source.location, Prefix=prefix)
            for page in pages:
                for entry in page.get("Contents", []):
                    if not (entry["Key"].endswith("/") and entry["Size"] == 0):
                        found.append(_file(request, entry["Key"], entry["Size"], entry["ETag"]))
        return sorted(found, key=lambda file: file.key)

    def place(self, file: RemoteFile) -> tuple[str, ...]:
        """Return s3/<hash of the endpoint>/<bucket>/<key>."""
        endpoint = sha256(self._endpoint.encode()).hexdigest()[:ENDPOINT_HASH_CHARACTERS]
        return ("s3", endpoint, file.request.source.location, *file.key.split("/"))

    def read(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        """Fill `into` with the object's content from byte `start` on, if it is still the one that was listed.

        Raises:
            RewardFLError, InterruptedReadError, ObjectChangedError: see Remote.read.
        """
        is_whole = start == 0 and len(into) == file.size
        headers = {"If-Match": file.version}
        # with a whole object the service sends the checksum that it keeps, with a range of one it does not
        headers |= {"x-amz-checksum-mode": "ENABLED"} if is_whole else {"Range": f"bytes={start}-{start + len(into) - 1}"}
        request = file.request
        try:
            with storage_errors(request.parameter, request.text, self._endpoint):
                yield from self._read(file, start, into, headers)
        except RewardFLError as error:
            if error.reason is Reason.STORAGE_UNAVAILABLE:
                raise InterruptedReadError(error) from error
            raise
        except ssl.SSLCertVerificationError as error:
            final = botocore.exceptions.SSLError(endpoint_url=self._endpoint, error=error)
            raise InterruptedReadError(self._unavailable(file, final)) from error
        except (OSError, http.client.HTTPException) as error:
            raise InterruptedReadError(self._unavailable(file, error)) from error

    def _read(self, file: RemoteFile, start: int, into: memoryview, headers: Mapping[str, str]) -> Iterator[int]:
        bucket = file.request.source.location
        with self._objects.get(bucket, file.key, headers) as answer:
            told = answer.headers
            if told.get("etag") != file.version:
                raise ObjectChangedError(file.subject)
            if "Range" not in headers:
                self._answered[bucket, file.key] = told
            elif not told.get("content-range", "").startswith(f"bytes {start}-"):
                raise self._unavailable(file, "it does not answer with the range that was asked for")
            position = 0
            while position < len(into) and (count := answer.readinto(into[position : position + BLOCK_BYTES])):
                position += count
                yield count

    def digests(self, file: RemoteFile) -> Sequence[Digest]:
        """Return the checksum that the service keeps, or else the ETag where that is one, and that of a manifest.

        Raises:
            RewardFLError, ObjectChangedError: see `stat`.
        """
        bucket = file.request.source.location
        headers = self._answered.pop((bucket, file.key), None)
        with storage_errors(file.request.parameter, file.request.text, self._endpoint):
            if headers is None:
                found = self._client.head_object(Bucket=bucket, Key=file.key, IfMatch=file.version, ChecksumMode="ENABLED")
                headers = found["ResponseMetadata"]["HTTPHeaders"]
            written = self._manifests.sha256(bucket, file.key)
        return [*announced(headers), *([Digest("sha256", written)] if written else [])]

    def close(self) -> None:
        """Close the connections."""
        self._objects.close()
        self._client.close()

    def _check_bucket(self, request: Request) -> None:
        """Raise when the bucket is not there. A refusal says nothing about that, so it passes."""
        try:
            self._client.head_bucket(Bucket=request.source.location)
        except botocore.exceptions.ClientError as error:
            if status_of(error) == HTTP_NOT_FOUND:
                raise missing_bucket(request.subject, self._endpoint) from error

    def _unavailable(self, file: RemoteFile, error: Exception | str) -> RewardFLError:
        return unavailable(file.subject, self._endpoint, error)


def announced(headers: Mapping[str, str]) -> list[Digest]:
    """Return the checksums of a whole object that the headers of an answer, by their names in small letters, tell of."""
    composite = headers.get("x-amz-checksum-type", "") == "COMPOSITE"
    for kind in _CHECKSUMS:
        value = headers.get(f"x-amz-checksum-{kind}", "")
        with contextlib.suppress(ValueError):  # a checksum of the parts' checksums ends in their number
            if value and not composite:
                return [Digest(kind, b64decode(value, validate=True).hex())]
    is_encrypted = any(headers.get(name) for name in (_SSE, f"{_SSE}-customer-algorithm"))
    match = _MD5_ETAG.match(headers.get("etag", ""))
    return [Digest("md5", match[1])] if match and not is_encrypted else []


def _file(request: Request, key: str, size: int, etag: str) -> RemoteFile:
    return RemoteFile(request, key, size, etag)
