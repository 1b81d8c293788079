"""Views: the contents of the cache under the names that the storage gives them. They are what staged.json names.

    <cache>/views/<id>/<place...>          a hard link to the content, or a copy where the volume has no hard links
    <cache>/.rewardfl/views/<id>           which content each of its files has; touched while it is used

The id is a hash of names and contents, so a view never changes: a job that runs keeps its files whatever the bucket has by now,
jobs that use the same share a view, and a start that finds its view has nothing to build. It is built aside and renamed.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.cache import OWN_FOLDER, READ_ONLY, UNTOUCHED_NS, VIEWS, Cache
from rewardfl_trainer.staging.folders import files_below, link_in_the_way, opened, write_whole

ID_CHARACTERS = 32
ASIDE = "."
"""What the names of views begin with that are not finished, or being removed."""

_NO_HARD_LINK = (
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP,
)  # fmt: skip
"""How volumes say that they have no hard links, have no more for this file, or not for a file of another user."""

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Files = Mapping[tuple[str, ...], str]
"""The SHA-256 of the content of each file, by its place."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What a view consists of."""

    files: dict[str, str]
    """The SHA-256 of each file, by its path in the view."""
    copied_bytes: int
    """Disk space of its own: that of files that are no hard links."""


def publish(cache: Cache, files: Files) -> Path:
    """Return the folder with these files below it, building it unless it is there. It is in use from now on.

    The caller's lease has the contents.

    Raises:
        RewardFLError: a symbolic link is in the way (UnsafePath), or a content has gone (IoFailed).
    """
    name = view_name(files)
    path = cache.root / VIEWS / name
    with cache.gate():
        if cache.lease is not None:
            cache.lease.add_view(name)
        if _is_whole(cache, path, files):
            _touch(cache, name)
            return path
    aside = cache.root / VIEWS / f"{ASIDE}{name}-{os.urandom(4).hex()}"
    copied = _build(cache, aside, files)
    with cache.gate():
        if not _is_whole(cache, path, files):
            _move_away(cache, path)
            write_manifest(cache, name, Manifest({"/".join(place): sha256 for place, sha256 in sorted(files.items())}, copied))
            aside.rename(path)
    remove_tree(aside)
    return path


def view_name(files: Files) -> str:
    """Return the id of the view with these files."""
    state = hashlib.sha256()
    for place, sha256 in sorted(files.items()):
        state.update(f"{'/'.join(place)}\0{sha256}\n".encode())
    return state.hexdigest()[:ID_CHARACTERS]


def known_sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file of a view without reading it; None for any other file, and for one that was changed."""
    for view in path.parents:
        if view.parent.name == VIEWS:
            sha256 = _files_of(view).get(path.relative_to(view).as_posix())
            return sha256 if sha256 is not None and path.lstat().st_mtime_ns == UNTOUCHED_NS else None
    return None


@lru_cache(maxsize=32)
def _files_of(view: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a view; those of an id never change. Of any other folder there are none."""
    manifest = _manifest_at(view.parent.parent / OWN_FOLDER / "views" / view.name)
    return manifest.files if manifest is not None else {}


def read_manifest(cache: Cache, name: str) -> Manifest | None:
    """Return what a view consists of; None when that is not known."""
    return _manifest_at(cache.own / "views" / name)


def _manifest_at(path: Path) -> Manifest | None:
    try:
        content = json.loads(path.read_bytes())
        return Manifest(dict(content["files"]), int(content["copied_bytes"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_manifest(cache: Cache, name: str, manifest: Manifest) -> None:
    """Record what a view consists of."""
    content = {"files": manifest.files, "copied_bytes": manifest.copied_bytes}
    write_whole(cache.own / "views" / name, json.dumps(content))


def remove_view(cache: Cache, name: str) -> None:
    """Remove a view that nobody uses. The caller holds the gate."""
    _move_away(cache, cache.root / VIEWS / name)
    (cache.own / "views" / name).unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, if it is there."""
    if path.is_symlink():
        raise link_in_the_way(path)
    if path.exists():
        shutil.rmtree(path)


def _touch(cache: Cache, name: str) -> None:
    try:
        os.utime(cache.own / "views" / name)
    except OSError as error:  # another user's, or gone: its age is not known as well, no more
        logger.debug("view %s: %s", name, error)


def _is_whole(cache: Cache, path: Path, files: Files) -> bool:
    """Whether the view holds exactly these files, and each looks as its content does."""
    try:
        with opened(cache.root, (VIEWS, path.name), create=False) as folder:
            found = files_below(folder, path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if found.keys() != files.keys():
        return False
    contents = {sha256: cache.blob_status(sha256) for sha256 in set(files.values())}
    manifest = read_manifest(cache, path.name)
    copies = manifest is not None and manifest.copied_bytes > 0
    return all(_looks_like(status, contents[files[place]], copies=copies) for place, status in found.items())


def _looks_like(file: os.stat_result, content: os.stat_result | None, *, copies: bool) -> bool:
    """Whether a file of a view is a link to its content or, in a view that has copies, may be one."""
    if content is None or file.st_mtime_ns != UNTOUCHED_NS:
        return False
    return os.path.samestat(file, content) or (copies and file.st_size == content.st_size)


def _build(cache: Cache, aside: Path, files: Files) -> int:
    """Make the view in the folder `aside`; return the bytes that had to be copied."""
    copied, made = 0, set[tuple[str, ...]]()
    for place, sha256 in sorted(files.items()):
        if place[:-1] not in made:
            aside.joinpath(*place[:-1]).mkdir(parents=True, exist_ok=True)
            made.add(place[:-1])
        copied += _link(cache, cache.blob_name(sha256), "/".join((str(aside), *place)))
    if copied:
        logger.warning("%s: %d bytes were copied, since the volume makes no hard links for user %d", aside, copied, os.getuid())
    return copied


def _link(cache: Cache, content: str, target: str) -> int:
    """Give a content another name; return the bytes that had to be copied for it."""
    try:
        os.link(content, target, follow_symlinks=False)
        return 0
    except FileNotFoundError as error:
        message = f"cache_dir: {content} was removed while it was staged"
        hint = "Leave the cache's files to the jobs and to `rewardfl cache prune`."
        raise RewardFLError(Reason.IO_FAILED, message, hint, ExitCode.IO_ERROR) from error
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
    try:
        return _copy(Path(content), Path(target))
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        message = f"cache_dir={cache.root}: is full, and this volume needs a second copy of {Path(content).stat().st_size} bytes"
        hint = "Use a volume with hard links, or a larger one; run all jobs of a cache as one user."
        raise RewardFLError(Reason.DISK_TOO_SMALL, message, hint, ExitCode.IO_ERROR) from error


def _copy(content: Path, target: Path) -> int:
    """Copy a file, sharing the disk space where the file system can; times and content are those of the original."""
    with content.open("rb") as source, target.open("xb") as copy:
        before = os.fstat(source.fileno())
        left = before.st_size
        try:
            while left and (count := os.copy_file_range(source.fileno(), copy.fileno(), left)):
                left -= count
        except OSError as error:
            if error.errno in _DISK_FULL or left != before.st_size:
                raise
            shutil.copyfileobj(source, copy)  # across file systems, or where the kernel cannot
        copy.flush()
        os.fsync(copy.fileno())
        os.utime(copy.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fchmod(copy.fileno(), READ_ONLY)
    return before.st_size


def _move_away(cache: Cache, path: Path) -> None:
    """Take a view out of its place at once, then remove it. Files that somebody has open stay readable for him."""
    gone = cache.root / VIEWS / f"{ASIDE}{path.name}-{os.urandom(4).hex()}"
    try:
        path.rename(gone)
    except FileNotFoundError:
        return
    remove_tree(gone)
