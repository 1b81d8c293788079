"""The metrics of a run: averaged over ranks, one JSON line a logged step, and TensorBoard events.

Every rank calls `mean_over_ranks`; only the main one writes. Must not decide anything by what it sees.
"""

import json
import math
import resource
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import distributed

from .environment import Process
from .feedback import Outcome
from .files import METRICS_FILE, TENSORBOARD_FOLDER
from .samples import SampleScore, mean_score

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HELD_OUT = "held_out_"
"""Beginning of the names of what is measured on evaluation rows; they have a group of their own in TensorBoard."""

BYTES_PER_GB = 1e9
BYTES_PER_KIB = 1024
"""Linux counts a process's memory in these."""


def mean_over_ranks(outcomes: Sequence[Outcome], process: Process) -> dict[str, float]:
    """Return the means of the outcomes of all ranks; every rank has as many, of the same names. A collective call."""
    values = [outcome.values() for outcome in outcomes]
    names = list(values[0])
    rows = [[value[name] for name in names] for value in values]
    means = torch.tensor(rows, dtype=torch.float64, device=process.device).mean(dim=0)
    distributed.all_reduce(means)
    return dict(zip(names, (means / process.world_size).tolist(), strict=True))


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that was in use at once, in GB: torch's on a GPU; on a CPU all of the process's, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / BYTES_PER_GB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIB / BYTES_PER_GB


class MetricsLog:
    """Writes metrics.jsonl and TensorBoard events into a folder. On ranks other than 0 it writes nothing.

    Args:
        folder: where to.
        process: which rank this is.
        start: step that the run goes on from. Above 0, what stands in the folder was written up to it and is added to.
    """

    def __init__(self, folder: Path, process: Process, start: int = 0) -> None:
        self.folder, self.enabled, self.start = folder, process.is_main, start
        self._writer: SummaryWriter | None = None
        if self.enabled:
            folder.mkdir(parents=True, exist_ok=True)
            if start == 0:
                (folder / METRICS_FILE).write_text("")
                shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of an optimizer step. What is not finite is null in the file."""
        if not self.enabled:
            return
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in values.items()}}
        with (self.folder / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            held_out = name.startswith(HELD_OUT)
            self._tensorboard().add_scalar(
                f"held_out/{name.removeprefix(HELD_OUT)}" if held_out else f"train/{name}", value, step
            )

    def held_out(self, values: Mapping[str, float]) -> None:
        """Add what was measured on evaluation rows before the first step, where there are any."""
        if values:
            self.write(0, values)

    def sample_scores(self, step: int, scores: Sequence[SampleScore]) -> None:
        """Add the mean score of the sample videos to TensorBoard."""
        if self.enabled and scores:
            self._tensorboard().add_scalar("samples/reward", mean_score(scores), step)

    def flush(self) -> None:
        """Put everything into the files, so that they can be uploaded."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Finish the event file."""
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _tensorboard(self) -> "SummaryWriter":
        """Return TensorBoard's writer, made on first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - takes seconds, and only rank 0 needs it

            self._writer = SummaryWriter(str(self.folder / TENSORBOARD_FOLDER), purge_step=self.start + 1 if self.start else None)
        return self._writer
