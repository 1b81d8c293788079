"""How many CPUs this process may use: those of its affinity, or fewer where its control group has a quota. Imports no torch."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of CPU time in a period, and the period's, as a container sees its own (Linux: admin-guide/cgroup-v2.rst)."""


def usable_cpus(quota: Path = QUOTA) -> int:
    """Return the number, at least 1."""
    found = len(os.sched_getaffinity(0))
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return max(1, min(found, math.ceil(int(allowed) / int(period))))
    except (OSError, ValueError):  # no such control group, or "max"
        return found
