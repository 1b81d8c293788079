"""Whether the kernel has killed a process of this container for want of memory. It must not import torch.

Where the memory limit kills one rank and not the whole container, the kubelet says nothing of it; the container's control
group does.
"""

from pathlib import Path

COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))
"""Of control groups version 2 and 1, as a container sees its own (Linux: admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst)."""

KILLS = "oom_kill"


def kills(counters: tuple[Path, ...] = COUNTERS) -> int:
    """Return how many processes the memory limit has killed so far; 0 where that cannot be known."""
    for path in counters:
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == KILLS and count.strip().isdigit():
                return int(count)
    return 0
