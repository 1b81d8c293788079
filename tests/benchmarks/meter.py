"""A stopwatch that also takes the peak of the process's memory by part, as the kernel counts it (Linux)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rewardfl_trainer.timing import Part, Stopwatch

KIBIBYTE = 1024


@dataclass
class Meter(Stopwatch):
    """Seconds and peak bytes by part.

    Attributes:
        peaks: the highest resident memory of the process in each part, in bytes.
    """

    peaks: dict[Part, int] = field(default_factory=dict)

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the time and the memory inside as `name`."""
        reset_peak()
        with super().part(name):
            yield
        self.peaks[name] = max(self.peaks.get(name, 0), memory("VmHWM"))


def reset_peak() -> None:
    """Let the kernel's high-water mark begin anew at the present memory (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field_name: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field_name}:"):
            return int(line.split()[1]) * KIBIBYTE
    raise LookupError(field_name)
