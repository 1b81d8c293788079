"""Signatures of GET requests for objects: AWS Signature Version 4, as botocore computes it, for thousands of requests.

https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. botocore's own form makes some forty objects for
each request, which costs more than everything else that is done in Python for a small file (docs/decisions/0120). Credentials
and their renewal stay botocore's.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import lru_cache

from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import NoCredentialsError

_ALGORITHM = "AWS4-HMAC-SHA256"
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def signed(
    credentials: ReadOnlyCredentials, region: str, authority: str, path: str, headers: Mapping[str, str], at: float | None = None
) -> dict[str, str]:
    """Return the headers of a GET request with those that authorise it.

    Args:
        credentials: whose.
        region: of the bucket.
        authority: host and port, as they are asked.
        path: of the request, quoted; it has no query.
        headers: to send beside that. All are signed.
        at: seconds since 1970. None: now.

    Raises:
        NoCredentialsError: they are empty.
    """
    if not credentials.access_key or not credentials.secret_key:
        raise NoCredentialsError
    now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    sent = {**headers, "Host": authority, "X-Amz-Date": now, "X-Amz-Content-SHA256": _EMPTY_SHA256}
    if credentials.token:
        sent["X-Amz-Security-Token"] = credentials.token
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
    names = ";".join(name for name, _ in lines)
    canonical = "".join(f"{name}:{value}\n" for name, value in lines)
    request = f"GET\n{path}\n\n{canonical}\n{names}\n{_EMPTY_SHA256}"
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = f"{_ALGORITHM}\n{now}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signature = _hmac(_key(credentials.secret_key, now[:8], region), text).hex()
    sent["Authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return sent


@lru_cache(maxsize=16)
def _key(secret: str, day: str, region: str) -> bytes:
    """Return what the requests of a day are signed with."""
    key = f"AWS4{secret}".encode()
    for text in (day, region, "s3", "aws4_request"):
        key = _hmac(key, text)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
