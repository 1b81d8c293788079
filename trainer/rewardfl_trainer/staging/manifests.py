"""The SHA-256 that a bucket's owner wrote down: SHA256SUMS in an object's folder, as coreutils' sha256sum writes it."""

import re
import threading
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from rewardfl_trainer.storage_errors import HTTP_FORBIDDEN, HTTP_NOT_FOUND, status_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MANIFEST = "SHA256SUMS"
MAX_BYTES = 16 * 2**20
"""A manifest of a hundred thousand files. A larger one is none."""

_LINE = re.compile(r"(?P<escaped>\\?)(?P<sum>[0-9a-fA-F]{64}) [ *](?:\./)?(?P<name>.+)")
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}


class Manifests:
    """The manifests of the folders of a service, each looked for once. Safe to use from several threads."""

    def __init__(self, client: "S3Client") -> None:
        self._client = client
        self._lock = threading.Lock()
        self._read: dict[tuple[str, str], dict[str, str]] = {}

    def sha256(self, bucket: str, key: str) -> str | None:
        """Return what the manifest beside an object says of it; None when it says nothing.

        Raises:
            botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError: the service cannot be used.
        """
        folder, slash, name = key.rpartition("/")
        with self._lock:
            if (bucket, folder) not in self._read:
                self._read[bucket, folder] = self._look(bucket, f"{folder}{slash}{MANIFEST}")
            return self._read[bucket, folder].get(name)

    def _look(self, bucket: str, key: str) -> dict[str, str]:
        """Return the checksums of a manifest by names; none where there is no manifest, or none that may be looked for."""
        try:
            listed = self._client.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents", [])
            if not listed or listed[0]["Key"] != key or listed[0]["Size"] > MAX_BYTES:
                return {}
            return parse(self._client.get_object(Bucket=bucket, Key=key)["Body"].read().decode(errors="replace"))
        except ClientError as error:
            if status_of(error) not in (HTTP_FORBIDDEN, HTTP_NOT_FOUND):
                raise
            return {}


def parse(text: str) -> dict[str, str]:
    """Return the checksums in small letters by names. Lines that are not of sha256sum's form say nothing."""
    found = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            name = match["name"]
            if match["escaped"]:
                name = re.sub(r"\\[\\nr]", lambda escape: _ESCAPES[escape[0]], name)
            found[name] = match["sum"].lower()
    return found
