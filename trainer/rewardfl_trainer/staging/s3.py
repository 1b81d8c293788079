"""S3 as a source: list, head and ranged reads, each bound to the ETag that was listed."""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

import botocore.exceptions
import urllib3.exceptions

from rewardfl_api.errors import RewardFLError
from rewardfl_trainer.s3 import endpoint_of
from rewardfl_trainer.staging.remote import BLOCK_BYTES, Digest, InterruptedReadError, RemoteFile
from rewardfl_trainer.staging.sources import Request
from rewardfl_trainer.storage_errors import (
    HTTP_NOT_FOUND,
    ObjectChangedError,
    missing_bucket,
    status_of,
    storage_errors,
    translate,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ENDPOINT_HASH_CHARACTERS = 12
_MD5_ETAG = re.compile(r'^"?([0-9a-f]{32})"?$')
"""The ETag of an object that was uploaded in one part is its MD5, unless the server encrypts it."""

_BROKEN_OFF = (
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ReadTimeoutError,
    botocore.exceptions.ResponseStreamingError,
    urllib3.exceptions.HTTPError,
    OSError,
)


class S3Remote:
    """The objects of one S3 service."""

    def __init__(self, client: "S3Client") -> None:
        self._client = client
        self._endpoint = endpoint_of(client)

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

    def read(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` up to `stop` of the object, if it is still the one that was listed.

        Raises:
            RewardFLError, InterruptedReadError, ObjectChangedError: see Remote.read.
        """
        request = file.request
        with storage_errors(request.parameter, request.text, self._endpoint):
            answer = self._client.get_object(
                Bucket=request.source.location, Key=file.key, IfMatch=file.version, Range=f"bytes={start}-{stop - 1}"
            )
        if answer["ETag"] != file.version:
            answer["Body"].close()
            raise ObjectChangedError(file.subject)
        try:
            yield from answer["Body"].iter_chunks(BLOCK_BYTES)
        except _BROKEN_OFF as error:
            raise InterruptedReadError(self._unavailable(file, error)) from error
        finally:
            answer["Body"].close()

    def is_binding(self, file: RemoteFile) -> bool:
        """Whether the ETag is an MD5 for certain: with server-side encryption it need not be."""
        with storage_errors(file.request.parameter, file.request.text, self._endpoint):
            found = self._client.head_object(Bucket=file.request.source.location, Key=file.key)
        return not (found.get("ServerSideEncryption") or found.get("SSECustomerAlgorithm"))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _check_bucket(self, request: Request) -> None:
        """Raise when the bucket is not there. A refusal says nothing about that, so it passes."""
        try:
            self._client.head_bucket(Bucket=request.source.location)
        except botocore.exceptions.ClientError as error:
            if status_of(error) == HTTP_NOT_FOUND:
                raise missing_bucket(request.subject, self._endpoint) from error

    def _unavailable(self, file: RemoteFile, error: Exception) -> RewardFLError:
        final = translate(error, file.subject, self._endpoint)
        if not isinstance(final, RewardFLError):
            raise final
        return final


def _file(request: Request, key: str, size: int, etag: str) -> RemoteFile:
    match = _MD5_ETAG.match(etag)
    return RemoteFile(request, key, size, etag, Digest("md5", match[1]) if match else None)
