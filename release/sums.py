"""SHA256SUMS over all files of a release, as `sha256sum --check` reads it."""

import hashlib
from pathlib import Path

from .errors import ReleaseError

NAME = "SHA256SUMS"


def write(folder: Path) -> None:
    """Write the checksums of all files in `folder`."""
    lines = [f"{_sum(path)}  {path.name}\n" for path in _files(folder)]
    (folder / NAME).write_text("".join(lines), encoding="utf-8")


def check(folder: Path) -> None:
    """Compare all files in `folder` with their checksums.

    Raises:
        ReleaseError: one differs, is missing, or has none.
    """
    if not (folder / NAME).is_file():
        raise ReleaseError(f"{folder}: has no {NAME}: run `make release`, which writes it last")
    told = {name: value for value, _, name in (line.partition("  ") for line in (folder / NAME).read_text().splitlines())}
    found = {path.name: _sum(path) for path in _files(folder)}
    wrong = sorted(name for name in {*told, *found} if told.get(name) != found.get(name))
    if wrong:
        raise ReleaseError(f"{folder.name}: {', '.join(wrong)}: not as in {NAME}: make the release again")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != NAME)


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
