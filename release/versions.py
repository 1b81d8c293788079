"""Which versions there may be, which is higher, and where the version is written. Everything else follows from that one place."""

import re
from pathlib import Path

from .errors import ReleaseError

PLACE = "crds/rewardfl_api/__init__.py"
_ORDER = ("alpha", "beta", "rc", "")
_NUMBER = r"(0|[1-9][0-9]*)"
_FORM = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-(alpha|beta|rc)\.{_NUMBER})?")
_LINE = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)


def check(version: str, current: str) -> None:
    """Refuse a version that is not semantic, or lower than the current one.

    Raises:
        ReleaseError: says what is wrong with it.
    """
    if _FORM.fullmatch(version) is None:
        raise ReleaseError(
            f"VERSION={version}: must be a semantic version such as 1.2.3 or 1.2.3-rc.1 (alpha, beta, rc: what Python knows too; "
            "without build metadata: image tags cannot carry it)"
        )
    if _precedence(version) < _precedence(current):
        raise ReleaseError(f"VERSION={version}: lower than {current}, which {PLACE} says: take that or a higher one")


def tag(version: str) -> str:
    """The name of a version's tag."""
    return f"v{version}"


def is_prerelease(version: str) -> bool:
    """Whether it comes before a release proper."""
    return "-" in version


def read(repository: Path) -> str:
    """Return the version that stands in its place."""
    found = _LINE.search((repository / PLACE).read_text(encoding="utf-8"))
    if found is None:
        raise ReleaseError(f"{PLACE}: has no line `__version__ = ...`: there must be one")
    return found[1]


def write(repository: Path, version: str) -> None:
    """Write the version into its place."""
    place = repository / PLACE
    text, count = _LINE.subn(f'__version__ = "{version}"', place.read_text(encoding="utf-8"))
    if count != 1:
        raise ReleaseError(f"{PLACE}: has {count} lines `__version__ = ...`: there must be one")
    place.write_text(text, encoding="utf-8")


def _precedence(version: str) -> tuple[int, ...]:
    """The order of semantic versions: what comes before a release is lower than it."""
    found = _FORM.fullmatch(version)
    if found is None:
        raise ReleaseError(f"{PLACE}: __version__ = {version!r} is no semantic version")
    major, minor, patch, stage, number = found.groups(default="")
    return int(major), int(minor), int(patch), _ORDER.index(stage), int(number or 0)
