"""Opens folders and files of the cache without following a symbolic link, whoever made it, and refuses names that are none.

Everything lies below one root, which other users may write to as well. Knows nothing of what lies there.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

MAX_NAME_BYTES = 255
"""Longest file name that Linux takes."""

FIRST_PRINTABLE = " "
REMOVE_HINT = "Remove it from the cache volume."
FRESH = ".new"
"""How the names of small files end that are not finished."""

_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def opened(root: Path, parts: Sequence[str], *, create: bool) -> Iterator[int]:
    """Open the folder `parts` below `root`, component by component; with `create` what is missing is made.

    Raises:
        RewardFLError: a symbolic link is in the way (UnsafePath).
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for depth, name in enumerate(parts):
            inner = _step(descriptor, name, root.joinpath(*parts[: depth + 1]), create)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def _step(folder: int, name: str, path: Path, create: bool) -> int:
    """Open the folder `name` in `folder`, making it if asked to."""
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
        return os.open(name, _OPEN_FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            refuse_link(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
        raise


@contextmanager
def opened_file(path: Path, flags: int) -> Iterator[int]:
    """Open a file of the cache's own, whose folder is known to be none of somebody's links; it is made if `flags` say so.

    Raises:
        RewardFLError: it is a symbolic link (UnsafePath).
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o664)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_in_the_way(path) from error
        raise
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def files_below(folder: int, path: Path) -> dict[tuple[str, ...], os.stat_result]:
    """Return every file below an open folder, by its names from there.

    Raises:
        RewardFLError: there is a symbolic link among them (UnsafePath).
    """
    found: dict[tuple[str, ...], os.stat_result] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            refuse_link(path / entry.name, status)
            if stat.S_ISDIR(status.st_mode):
                inner = os.open(entry.name, _OPEN_FOLDER, dir_fd=folder)
                try:
                    below = files_below(inner, path / entry.name)
                finally:
                    os.close(inner)
                found |= {(entry.name, *names): status for names, status in below.items()}
            else:
                found[entry.name,] = status
    return found


def write_whole(path: Path | str, text: str) -> None:
    """Write a small file whole or not at all. Not flushed: whoever reads it compares it with what it is about."""
    fresh = f"{path}.{os.getpid()}-{os.urandom(4).hex()}{FRESH}"
    _write(fresh, text)
    os.replace(fresh, path)  # noqa: PTH105 - for each of thousands of files


def write_new(path: str, text: str) -> None:
    """Write a small file; whole or not at all only where there was one, so what is read may end too early."""
    try:
        _write(path, text)
    except FileExistsError:
        write_whole(path, text)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def check_place(place: Sequence[str], subject: str) -> None:
    """Refuse a place that would lie outside its folder, or that no file system can hold.

    Raises:
        RewardFLError: it does (UnsafePath, exit code 65).
    """
    for name in place:
        if name in ("", ".", "..") or "/" in name or any(character < FIRST_PRINTABLE for character in name):
            raise unsafe(f"{subject}: the key has a part {name!r}, which is no file name", "Rename the object.")
        if len(name.encode()) > MAX_NAME_BYTES:
            raise unsafe(f"{subject}: the key has a part of more than {MAX_NAME_BYTES} bytes", "Rename the object.")


def unsafe(message: str, hint: str) -> RewardFLError:
    """Return the error for a name or link that is refused."""
    return RewardFLError(Reason.UNSAFE_PATH, message, hint, ExitCode.BAD_DATA)


def link_in_the_way(path: Path) -> RewardFLError:
    """Return the error for a symbolic link in the cache."""
    return unsafe(f"cache_dir: {path} is a symbolic link", REMOVE_HINT)


def refuse_link(path: Path, status: os.stat_result) -> None:
    """Refuse what is a symbolic link.

    Raises:
        RewardFLError: it is one (UnsafePath).
    """
    if stat.S_ISLNK(status.st_mode):
        raise link_in_the_way(path)
