"""Where one build at a time runs, and the clearing of what a killed one left behind.

A killed buildah leaves working containers with their mounts, gigabytes of half-written layers in its temporary folder, and with
them the settings that the build was lent. So all of it lies in one folder, behind a lock that ends with its holder; the list of
the containers that were there before tells which are the build's; one that somebody makes by hand after the kill and before the
next build is taken for one of them.
"""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.paths import cache_root
from tests.cluster.report import ClusterError, say

from .tools import Tool

_BEFORE = "containers-before.json"


@dataclass(frozen=True)
class Workplace:
    """A build's own folders.

    Attributes:
        settings: private; what the build is lent.
        temporary: where the tool puts what it needs for a while.
        lock: a file descriptor; a program that inherits it keeps the place taken until it ends.
    """

    settings: Path
    temporary: Path
    lock: int


@contextmanager
def enter(tool: Tool) -> Iterator[Workplace]:
    """Wait for the builds of other processes, clear what a killed one left, and yield the place; it is empty afterwards."""
    root = cache_root() / "images"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        _wait_for(lock.fileno())
        folder = root / "build"
        clear(folder, tool)
        place = Workplace(folder / "settings", folder / "temporary", lock.fileno())
        folder.mkdir(mode=0o700)
        (folder / _BEFORE).write_text(json.dumps(sorted(tool.containers())))
        for part in (place.settings, place.temporary):
            part.mkdir()
        try:
            yield place
        finally:
            clear(folder, tool)


def clear(folder: Path, tool: Tool) -> None:
    """Remove the containers that were made since the build began, and its folder."""
    if not folder.exists():
        return
    before = folder / _BEFORE
    if before.is_file():
        left = tool.containers() - set(json.loads(before.read_text()))
        if left:
            say(f"removing {len(left)} working containers that an interrupted build left")
            tool.remove_containers(left)
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [path for path in mounted if path.startswith(f"{folder}/")]
    if below:
        raise ClusterError(f"{folder} has mounts below it, so it is not removed: run `umount {' '.join(below)}`")
    shutil.rmtree(folder)


def _wait_for(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another process builds images; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
