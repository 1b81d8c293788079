"""CHANGELOG.md in the form of Keep a Changelog: what is unreleased becomes a version's section. Pure."""

import re

from .errors import ReleaseError

_UNRELEASED = "## [Unreleased]\n"
_HEADING = re.compile(r"^## \[", re.MULTILINE)
_KIND = re.compile(r"^### (\w+)$", re.MULTILINE)
_ENTRY = re.compile(r"^- (.+(?:\n  .+)*)", re.MULTILINE)

Entry = tuple[str, str]
"""Kind (Added, Changed, ...) and what it says, in one line."""


def release(text: str, version: str, date: str) -> str:
    """Return the changelog in which what was unreleased is the section of `version`.

    Raises:
        ReleaseError: there is no section of unreleased changes, or none in it, or the version has a section already.
    """
    if text.count(_UNRELEASED) != 1:
        raise ReleaseError("CHANGELOG.md: must have one line `## [Unreleased]`")
    if f"## [{version}]" in text:
        raise ReleaseError(f"CHANGELOG.md: has a section [{version}] already: take a higher version, or move its lines back")
    if not entries(_after(text, _UNRELEASED)):
        raise ReleaseError("CHANGELOG.md: nothing stands under [Unreleased]: write there what this version changes for its users")
    return text.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {date}\n")


def section(text: str, version: str) -> str:
    """Return what stands in a version's section.

    Raises:
        ReleaseError: it has none.
    """
    heading = re.search(rf"^## \[{re.escape(version)}\].*\n", text, re.MULTILINE)
    if heading is None:
        raise ReleaseError(f"CHANGELOG.md: has no section [{version}]")
    return _after(text, heading[0]).strip() + "\n"


def entries(text: str) -> list[Entry]:
    """Return the entries of a section, in their order."""
    kinds = _KIND.split(text)[1:]
    pairs = zip(kinds[::2], kinds[1::2], strict=True)
    return [(kind, " ".join(entry.split())) for kind, body in pairs for entry in _ENTRY.findall(body)]


def _after(text: str, heading: str) -> str:
    """What stands between a heading and the next of its level."""
    rest = text.partition(heading)[2]
    following = _HEADING.search(rest)
    return rest[: following.start()] if following else rest
