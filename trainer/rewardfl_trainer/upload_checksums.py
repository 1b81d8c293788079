"""Lets an S3 service notice what was damaged on its way there: a body goes with a checksum, and one that is refused goes again.

AWS gets the checksums of its own client. Elsewhere the client sends none, since many services do not know them; all have known
Content-MD5 from the beginning. (A service may check the SHA-256 in a request's signature instead; SeaweedFS does not.)
"""

import base64
import hashlib
import random
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BLOCK_BYTES = 2**20
MD5_HEADER = "Content-MD5"
OPERATIONS = ("PutObject", "UploadPart")
DAMAGED_CODES = frozenset({"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch"})
"""What services answer to a body that is not the one that was announced."""

MAX_PAUSE_SECONDS = 8.0


def protect(client: "S3Client", attempts: int, *, with_md5: bool) -> None:
    """Have every upload of `client` checked by the service.

    Args:
        client: its requests are changed.
        attempts: how often a body is sent at most.
        with_md5: send a Content-MD5, where the client itself sends no checksum.
    """

    def damaged(response: tuple[Any, Mapping[str, Any]] | None, attempts: int, **_: object) -> float | None:
        """Return the pause before the next try; None: this is no case for one. botocore's own rules are asked first."""
        code = response[1].get("Error", {}).get("Code") if response is not None else None
        if code not in DAMAGED_CODES or attempts >= limit:
            return None
        return random.uniform(0.5, 1.0) * min(2.0 ** (attempts - 1), MAX_PAUSE_SECONDS)  # noqa: S311

    limit = attempts
    for operation in OPERATIONS:
        client.meta.events.register(f"needs-retry.s3.{operation}", damaged)  # type: ignore[arg-type] # its answer counts
        if with_md5:
            client.meta.events.register(f"before-call.s3.{operation}", _add_md5)


def _add_md5(params: dict[str, Any], **_: object) -> None:
    """Add the checksum of a request's body."""
    headers = params["headers"]
    if MD5_HEADER not in headers and not any(name.lower().startswith("x-amz-checksum-") for name in headers):
        headers[MD5_HEADER] = base64.b64encode(_md5_of(params["body"])).decode()


def _md5_of(body: "bytes | bytearray | IO[bytes]") -> bytes:
    """Return the checksum of a body; a file is read from where it stands, and put back there."""
    state = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        state.update(body)
        return state.digest()
    start = body.tell()
    while block := body.read(BLOCK_BYTES):
        state.update(block)
    body.seek(start)
    return state.digest()
