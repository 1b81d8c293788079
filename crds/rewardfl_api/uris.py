"""Where data comes from: the URI forms that every path parameter takes. Parses only; fetches nothing."""

import re
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["s3", "hf", "ms", "file"]

SOURCE_PATTERN = r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?|(hf|ms)://[^/@:]+/[^/@:]+(@[^:]+)?(:.+)?|/.*|\.{1,2}/.*)$"
"""What a source may look like, as the CRD checks it: s3://bucket/key, hf:// or ms://org/name[@revision][:pattern], a path."""

S3_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"
"""What a place to write to may look like."""

_HUB = re.compile(r"^(?P<repo>[^/@:]+/[^/@:]+)(@(?P<revision>[^:]+))?(:(?P<pattern>.+))?$")


@dataclass(frozen=True)
class Source:
    """A parsed source. `location` is the bucket, the hub repository or the empty string; `path` the key, pattern or file path."""

    scheme: Scheme
    location: str
    path: str
    revision: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the source has to be staged before it can be opened."""
        return self.scheme != "file"


def parse_source(text: str) -> Source:
    """Parse `text`, one source.

    Raises:
        ValueError: not one of the known forms; the message names the text and the forms.
    """
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _contained(Source("file", "", text), text)
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if not re.match(S3_PATTERN, text):
            raise ValueError(f"{text!r}: not a valid s3://bucket/key")
        return _contained(Source("s3", bucket, key), text)
    if scheme in ("hf", "ms"):
        match = _HUB.match(rest)
        if not match:
            raise ValueError(f"{text!r}: write {scheme}://org/name[@revision][:pattern]")
        source = Source(scheme, match["repo"], match["pattern"] or "", match["revision"])  # type: ignore[arg-type]
        return _contained(source, text)
    if scheme == "file":
        return _contained(Source("file", "", rest), text)
    raise ValueError(f"{text!r}: unknown scheme {scheme!r}; use s3://, hf://, ms:// or a file path")


def _contained(source: Source, text: str) -> Source:
    """Refuse what could leave the folder that a remote source is staged into."""
    if "\0" in text:
        raise ValueError(f"{text!r}: contains a NUL character")
    if source.is_remote and (source.path.startswith("/") or ".." in source.path.split("/")):
        raise ValueError(f"{text!r}: must not contain '..' or '//' after the bucket")
    return source
