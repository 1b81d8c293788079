"""State folders that belong to a living process, and the clearing of those whose owner is dead.

A slot is a number, a folder `<state root>/<number>/` and a lock file beside it. The lock (flock) ends with its owner,
however that ended, so whoever can take the lock of an existing slot may clear it. A detached slot (`up` on the command
line) has no owner and is cleared only by `down` or the next `up`.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from . import cgroups, network
from .paths import state_root
from .processes import Processes
from .report import ClusterError, say

SLOT_COUNT = 256
_DETACHED = "detached"
_CLAIMED = "claimed"
_NODE = "node"


class Slot:
    """One numbered state folder, locked by this process until `release` or `clear`."""

    def __init__(self, index: int, lock: int) -> None:
        self.index = index
        self.folder = state_root() / f"{index:03d}"
        self.processes = Processes(self.folder)
        self._lock = lock

    @classmethod
    def acquire(cls, *, accept: Callable[[int], bool] = lambda _: True) -> "Slot":
        """Clear what dead sessions left, then take a free slot whose number `accept` likes."""
        clear_abandoned()
        for index in range(SLOT_COUNT):
            slot = cls.try_lock(index) if accept(index) else None
            if slot is None:
                continue
            if not slot.folder.exists():
                slot.folder.mkdir(mode=0o755)
                return slot
            slot.release()
        raise ClusterError(f"no free slot among the {SLOT_COUNT} below {state_root()}: run `python -m tests.cluster down`")

    @classmethod
    def try_lock(cls, index: int) -> "Slot | None":
        """Lock slot `index`; None where a living process holds it."""
        path = _lock_path(index)
        while True:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            try:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:
                continue  # the last slot's end removed the root folder in between
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return None
            if _is_same_file(lock, path):
                os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
                return cls(index, lock)
            os.close(lock)

    @property
    def is_detached(self) -> bool:
        """Whether the slot was left running on purpose."""
        return (self.folder / _DETACHED).exists()

    def claim(self, paths: Iterable[Path]) -> None:
        """Say of files outside the folder, before they are made, that they belong to the slot and go with it."""
        with (self.folder / _CLAIMED).open("a") as claimed:
            claimed.writelines(f"{path}\n" for path in paths)

    def claim_node(self) -> None:
        """Say, before they are made, that the cgroup and the interface of the slot's number belong to it and go with it."""
        (self.folder / _NODE).touch()

    def detach(self) -> None:
        """Leave everything in the slot running and give up its lock."""
        (self.folder / _DETACHED).touch()
        self.processes.abandon()
        self.release()

    def release(self) -> None:
        """Give up the lock; the folder stays."""
        os.close(self._lock)

    def clear(self) -> None:
        """Stop everything that was started in the slot and remove every trace of it, then give up the lock."""
        self.processes.stop()
        if (self.folder / _NODE).exists():
            cgroups.remove(self.index)
            network.remove(self.index)
        self._remove_claimed()
        _remove_tree(self.folder)
        _lock_path(self.index).unlink(missing_ok=True)
        self.release()
        with contextlib.suppress(OSError):
            state_root().rmdir()

    def _remove_claimed(self) -> None:
        claimed = self.folder / _CLAIMED
        for line in claimed.read_text().splitlines() if claimed.exists() else ():
            Path(line).unlink(missing_ok=True)


def clear_abandoned(*, detached: bool = False) -> int:
    """Clear the slots whose owner is dead, with `detached` also those left running on purpose; returns how many."""
    cleared = 0
    for slot in _unowned():
        if slot.is_detached and not detached:
            slot.release()
            continue
        say(f"clearing what an earlier session left in {slot.folder}")
        slot.clear()
        cleared += 1
    return cleared


def find_detached() -> Path | None:
    """The folder of the cluster that `up` left running, None where there is none."""
    return next((marker.parent for marker in sorted(state_root().glob(f"*/{_DETACHED}"))), None)


def owners() -> dict[int, int]:
    """Slot number -> pid of the living process that holds it."""
    held: dict[int, int] = {}
    for path in sorted(state_root().glob("*.lock")):
        slot = Slot.try_lock(int(path.stem))
        if slot is None:
            held[int(path.stem)] = int(path.read_text().split()[0])
        else:
            slot.release()
    return held


def _unowned() -> Iterator[Slot]:
    for path in sorted(state_root().glob("*.lock")):
        slot = Slot.try_lock(int(path.stem))
        if slot is not None:
            yield slot


def _lock_path(index: int) -> Path:
    return state_root() / f"{index:03d}.lock"


def _is_same_file(lock: int, path: Path) -> bool:
    """Whether the locked file is still the one that the path names; a slot's end removes its lock file."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _remove_tree(folder: Path) -> None:
    """Remove the folder, unless something is mounted below it: then its files may be anyone's."""
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    below = [path for path in mounted if path.startswith(f"{folder}/")]
    if below:
        raise ClusterError(f"{folder} has mounts below it, so it is not removed: run `umount {' '.join(below)}`")
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        shutil.rmtree(folder)  # a dying process wrote once more in between
