"""The cgroup below which a node's pods live, on cgroup v1 (one hierarchy a controller), v2 and their hybrid."""

import contextlib
import time
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_V2_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")
_REMOVE_SECONDS = 10


def name(index: int) -> str:
    """The cgroup of the slot's pods, as the kubelet's cgroupRoot wants it."""
    return f"/rewardfl-{index:03d}"


def create(index: int) -> None:
    """Make the slot's cgroup in every hierarchy of the machine."""
    for hierarchy in _hierarchies():
        _enable_controllers(hierarchy)
        (hierarchy / name(index)[1:]).mkdir(exist_ok=True)


def remove(index: int) -> None:
    """Remove the slot's cgroup with all below it; its processes have been killed and may take a moment to go."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    for hierarchy in _hierarchies():
        root = hierarchy / name(index)[1:]
        while root.is_dir():
            _remove_leaves_first(root)
            if root.is_dir():
                if time.monotonic() > deadline:
                    root.rmdir()  # raises what stands in the way
                time.sleep(0.05)


def _hierarchies() -> list[Path]:
    """The folders that hold cgroups: the mount itself on pure v2, else each controller's."""
    if (_MOUNT / "cgroup.controllers").exists():
        return [_MOUNT]
    return sorted({entry.resolve() for entry in _MOUNT.iterdir() if (entry / "cgroup.procs").exists()})


def _enable_controllers(hierarchy: Path) -> None:
    """On v2 a child has only the controllers that its parent passes on."""
    control = hierarchy / "cgroup.subtree_control"
    if not control.exists():
        return
    available = (hierarchy / "cgroup.controllers").read_text().split()
    for controller in _V2_CONTROLLERS:
        if controller in available:
            control.write_text(f"+{controller}")


def _remove_leaves_first(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for child in folder.iterdir():
            if child.is_dir():
                _remove_leaves_first(child)
    with contextlib.suppress(OSError):
        folder.rmdir()
