"""The SHA-256 of files, remembered beside the cache: 28 GB of weights are read once and not on every start.

A digest is remembered for a file's path, size, modification time and inode. A file that changed so lately that the next change
might get the same time is not remembered. Files that were staged are known by their digest already, and not read at all.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..disk import sha256_of
from ..staging.views import known_sha256
from .locks import claim

SETTLED_SECONDS = 2.0
"""Coarsest step of a file system's modification times."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the same without reading it."""

    path: str
    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Return the stamp of a file as it is now."""
        found = path.stat()
        return cls(str(path), found.st_size, found.st_mtime_ns, found.st_ino)


class Digests:
    """Digests of files, remembered in `folder`. Several processes may share it: each file is read by one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, path: Path) -> str:
        """Return the SHA-256 of a file's content in hexadecimal digits.

        Raises:
            OSError: the file cannot be read, or the folder not be written to.
        """
        path = path.resolve()
        digest = self._recall(path)
        return digest or self._claimed(path, wait=True) or sha256_of(path)

    def share(self, paths: Sequence[Path], number: int, count: int) -> None:
        """Read the files that are not known yet, each by another one of `count` processes, of which this is `number`."""
        files = [path.resolve() for path in paths]
        start = len(files) * number // count
        for path in [*files[start:], *files[:start]]:
            if self._recall(path) is None:
                self._claimed(path, wait=False)

    def _claimed(self, path: Path, *, wait: bool) -> str | None:
        """Read the file unless another process does; with `wait`, take what that one found."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with claim(self._record(path).with_suffix(".lock"), wait=wait) as ours:
            if not ours:
                return None
            return self._recall(path) or self._read(path)

    def _read(self, path: Path) -> str:
        """Return the file's digest, remembering it when the file was the same before and after, and has settled."""
        before = Stamp.of(path)
        digest = sha256_of(path)
        settled = time.time() - before.mtime_ns / 1e9 > SETTLED_SECONDS
        if settled and Stamp.of(path) == before:
            fresh = self._record(path).with_suffix(".new")
            fresh.write_text(json.dumps({**asdict(before), "sha256": digest}), encoding="utf-8")
            fresh.replace(self._record(path))
        return digest

    def _recall(self, path: Path) -> str | None:
        """Return the digest that is remembered of the file as it is now, be it here or from when it was staged."""
        if (staged := known_sha256(path)) is not None:
            return staged
        try:
            content = json.loads(self._record(path).read_text(encoding="utf-8"))
            digest = content.pop("sha256")
            return str(digest) if Stamp(**content) == Stamp.of(path) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _record(self, path: Path) -> Path:
        """Return where the digest of a file is remembered."""
        return self.folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"
