"""Where the seconds of a step go, by part. Changes nothing that is computed, and waits for the device only when it is read.

On a GPU a part is measured by events in its stream, because a call returns long before its kernels have run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

Part = Literal["prepare", "sample", "reference", "decode", "reward", "backward", "optimise"]
"""What a step consists of: rows and their conditions; denoising with the trained and with the untrained model; the decoder; the
reward; the backward pass with what it recomputes; clipping, communication and the optimizer."""

MILLISECONDS = 1000.0


@dataclass
class Stopwatch:
    """Adds up seconds by part until it is read. Parts must not lie within each other.

    Attributes:
        device: where the work runs.
    """

    device: torch.device
    seconds: dict[Part, float] = field(default_factory=dict)
    _events: list[tuple[Part, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the time inside as `name`."""
        if self.device.type == "cuda":
            start, end = _event(), _event()
            start.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((name, start, end))
            return
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def read(self) -> dict[str, float]:
        """Return the seconds by part since the last reading, as metrics (`seconds_<part>`), and start again."""
        if self._events:
            torch.cuda.synchronize(self.device)
        for name, start, end in self._events:
            self.seconds[name] = self.seconds.get(name, 0.0) + start.elapsed_time(end) / MILLISECONDS
        found = {f"seconds_{name}": seconds for name, seconds in self.seconds.items()}
        self.seconds, self._events = {}, []
        return found


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event
