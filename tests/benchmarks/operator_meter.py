"""What is read of a running operator: memory and CPU from the kernel, requests and turns from its own metrics."""

import os
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from rewardfl_operator.cluster import READS
from tests.integration.operator_harness import Operator

KIBIBYTES_PER_MEGABYTE = 1e6 / 1024
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Meter:
    """A running operator, and the CPU seconds and the time at which its measuring began."""

    operator: Operator
    began: float = field(default_factory=monotonic)
    cpu_before: float = 0.0

    def start(self) -> None:
        """Begin to measure CPU time."""
        self.began, self.cpu_before = monotonic(), self.cpu_seconds()

    def cores(self) -> float:
        """Return how many cores it has used since, on average."""
        return (self.cpu_seconds() - self.cpu_before) / (monotonic() - self.began)

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used in its life."""
        return cpu_seconds(self.operator.process.pid)

    def peak_megabytes(self) -> float:
        """Return the most memory that was resident at any time."""
        status = Path(f"/proc/{self.operator.process.pid}/status").read_text(encoding="utf-8")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / KIBIBYTES_PER_MEGABYTE

    def scrape(self) -> "Sample":
        """Return its metrics as they are now."""
        with NO_PROXY.open(f"http://127.0.0.1:{self.operator.port()}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return Sample([sample for family in text_string_to_metric_families(text) for sample in family.samples])


@dataclass(frozen=True)
class Sample:
    """The metrics at one moment."""

    samples: list[Any]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all that have these labels."""
        found = (sample for sample in self.samples if sample.name == name and labels.items() <= sample.labels.items())
        return float(sum(sample.value for sample in found))

    def writes(self) -> int:
        """Return how many requests were writes to anything but the Lease of the election."""
        found = (sample for sample in self.samples if sample.name == "rewardfl_api_requests_total")
        return int(sum(each.value for each in found if each.labels["verb"] not in READS and each.labels["kind"] != "leases"))

    def turns(self) -> int:
        """Return how many turns there were."""
        return int(self.total("rewardfl_reconcile_duration_seconds_count"))

    def is_at_rest(self) -> bool:
        """Whether no job waits for a turn."""
        return self.total("rewardfl_queue_depth") == 0


def cpu_seconds(process_id: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
