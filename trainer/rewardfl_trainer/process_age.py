"""How long this process has been running, and how long the one before it in the pod took to stage. Imports next to nothing."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

STAGING_TIME_FILE = "staging-time.json"
"""In the work folder; of one staging, until the trainer has taken it."""

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
START_TICKS_FIELD = 19
"""Of what follows the program's name in /proc/self/stat: when it was started, in ticks since the machine was."""


@dataclass(frozen=True)
class StagingTime:
    """When a staging began, in seconds since the epoch, and how many seconds it took."""

    began: float
    seconds: float


def process_seconds() -> float:
    """Return how long this process has been running; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[START_TICKS_FIELD])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_PER_SECOND)
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def leave_staging_time(work_dir: Path) -> None:
    """Write down how long this process, which stages, has taken. What is only measured fails nothing."""
    seconds = process_seconds()
    try:
        (work_dir / STAGING_TIME_FILE).write_text(
            json.dumps({"began": time.time() - seconds, "seconds": seconds}), encoding="utf-8"
        )
    except OSError:
        return


def take_staging_time(work_dir: Path) -> StagingTime | None:
    """Return what the staging of this start has left, once; None where nothing was staged."""
    path = work_dir / STAGING_TIME_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = StagingTime(float(content["began"]), float(content["seconds"]))
        path.unlink()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if 0 <= found.seconds <= time.time() - found.began else None
