"""Takes secrets out of text before it is logged or left in a termination message.

It knows the values of this process's secret environment variables and the usual shapes of keys and signed URLs.
It is the last line of defence: code that makes a message must not put a secret into it in the first place.
"""

import os
import re
from urllib.parse import quote

MASK = "***"
MIN_SECRET_LENGTH = 6
"""Shorter values are no secrets, and masking them would garble ordinary words."""

_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY")
_NOT_A_SECRET_NAME = re.compile(r"(_FILE|_PATH|_URI|_URL|_DIR|_NAME|TOKENIZERS_PARALLELISM)$")

_SHAPES = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    (re.compile(r"(://)[^/\s:@]+:[^/\s@]+@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)\b(X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)['\"]?\s*[=:]\s*['\"]?)[^&\s'\"]+"), rf"\1{MASK}"),
    (re.compile(r"([?&](?:Signature|AWSAccessKeyId|GoogleAccessId|sig)=)[^&\s'\"]+"), rf"\1{MASK}"),
    (
        re.compile(
            r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic|aws4-hmac-sha256)\s+)?[^\s'\"]+"
            r"(?:,?\s*(?:signedheaders|signature)=[^\s'\"]+)*"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}"), rf"\1{MASK}"),
    (
        re.compile(
            r"(?i)\b((?:[\w-]*(?:password|passwd|secret[_-]?(?:access[_-]?)?key|(?:session|security|access|auth)[_-]?token|api[_-]?key))"
            r"['\"]?\s*[:=]\s*['\"]?)[^\s'\",&;]+"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), MASK),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}\b"), MASK),
    (re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"), MASK),
)
"""The last one is a JSON Web Token, such as that of a service account."""


def redact(text: str) -> str:
    """Return `text` with every secret that is known to this process replaced by ***."""
    for value in sorted(_secret_values(), key=len, reverse=True):
        for spelling in (value, quote(value, safe=""), value.encode("unicode_escape").decode()):
            text = text.replace(spelling, MASK)
    for pattern, replacement in _SHAPES:
        text = pattern.sub(replacement, text)
    return text


def _secret_values() -> set[str]:
    return {
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name.upper()) and not _NOT_A_SECRET_NAME.search(name.upper()) and len(value) >= MIN_SECRET_LENGTH
    }
