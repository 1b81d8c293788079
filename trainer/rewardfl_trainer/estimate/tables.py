"""The tables of docs/tuning.md: which settings fit which GPU, counted by the estimate for Wan2.2-I2V-A14B.

`python -m rewardfl_trainer.estimate.tables --write docs/tuning.md` takes minutes. Must not judge what is worth its time: the
order of the settings is `fit.CANDIDATES`.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewardfl_api.docs import fill
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from .fit import CANDIDATES, GPU_BYTES, Settings, needed_bytes
from .networks import a14b
from .reference import A14B_PARAMETERS
from .result import Estimate, Estimator
from .step import Video

GIGA, PETA = 1e9, 1e15
ALL_WEIGHTS = {"lora_base_model": None}


@dataclass(frozen=True)
class Row:
    """A size of videos, with the estimate of each of the settings on so many GPUs."""

    video: Video
    tried: dict[int, list[tuple[Settings, Estimate]]]


@dataclass(frozen=True)
class Table:
    """What is trained, the sizes of videos, and the numbers of GPUs."""

    training: dict[str, None]
    """Training parameters beside those of a LoRA on the low-noise expert."""
    videos: tuple[Video, ...]
    gpus: tuple[int, ...]

    def rows(self) -> list[Row]:
        """Count every row."""
        return [self.row(video) for video in self.videos]

    def row(self, video: Video) -> Row:
        """Count one row."""
        given = {**A14B_PARAMETERS, **self.training}
        size = {"num_frames": video.num_frames, "height": video.height, "width": video.width}
        config = TrainerConfig(dataset="-", output="-", training=TrainingParameters.model_validate({**given, **size}))
        estimator = Estimator(a14b())
        return Row(
            video,
            {
                count: [(settings, estimator.estimate(settings.applied(config), count)) for settings in CANDIDATES]
                for count in self.gpus
            },
        )


def _sizes(width: int, height: int, frames: Sequence[int]) -> tuple[Video, ...]:
    return tuple(Video(count, height, width) for count in frames)


LORA = Table(
    {}, (*_sizes(480, 480, (17, 49, 81, 121)), *_sizes(832, 480, (49, 81, 121)), *_sizes(1280, 720, (17, 49, 81))), (1, 8)
)
FULL = Table(ALL_WEIGHTS, (*_sizes(480, 480, (17, 49, 81)), *_sizes(832, 480, (49, 81))), (8, 16))


def render(rows: Sequence[Row], gpus: int) -> str:
    """Return a Markdown table: for each size of videos and each GPU the first settings that fit."""
    sizes = [f"{gigabytes} GB" for gigabytes in GPU_BYTES]
    lines = ["| video | frames | " + " | ".join(sizes) + " |", "|" + "---|" * (len(sizes) + 2)]
    return "\n".join([*lines, *(line(row, gpus) for row in rows)]) + "\n"


def line(row: Row, gpus: int) -> str:
    """Return a line of that table."""
    cells = [_cell(row.tried[gpus], available) for available in GPU_BYTES.values()]
    return f"| {row.video.width}x{row.video.height} | {row.video.num_frames} | " + " | ".join(cells) + " |"


def _cell(tried: Sequence[tuple[Settings, Estimate]], available: float) -> str:
    for settings, estimate in tried:
        if needed_bytes(estimate) <= available:
            offload = " + offload" if settings.offload else ""
            host = f", CPU {estimate.host_bytes / GIGA:.0f}" if estimate.host_bytes >= GIGA else ""
            return f"`{settings.preset}`{offload}: {needed_bytes(estimate) / GIGA:.1f}{host}"
    return f"none; {min(needed_bytes(estimate) for _, estimate in tried) / GIGA:.1f} at the least"


def render_compute(rows: Sequence[Row]) -> str:
    """Return a Markdown table of what a step computes, without and with checkpoint offload."""
    lines = ["| video | frames | tokens | PFLOP a sample | with offload | before training |", "|---|---|---|---|---|---|"]
    for row in rows:
        plain, offloaded = (next(e for s, e in row.tried[1] if s.offload == offload) for offload in (False, True))
        first = sum(plain.first_phase_flops.values())
        flops = " | ".join(f"{value / PETA:.2f}" for value in (plain.flops_per_step, offloaded.flops_per_step, first))
        size = f"{row.video.width}x{row.video.height} | {row.video.num_frames}"
        lines.append(f"| {size} | {plain.tokens} | {flops} |")
    return "\n".join(lines) + "\n"


def parts() -> dict[str, Callable[[], str]]:
    """Return the generated parts of docs/tuning.md."""
    lora, full = LORA.rows(), FULL.rows()
    return {
        "fits-lora-one": lambda: render(lora, 1),
        "fits-lora-eight": lambda: render(lora, 8),
        "fits-full-eight": lambda: render(full, 8),
        "fits-full-sixteen": lambda: render(full, 16),
        "compute": lambda: render_compute(lora),
    }


def main() -> None:
    """Renew the tables."""
    parser = argparse.ArgumentParser(description="Count the tables of docs/tuning.md; minutes.")
    parser.add_argument("--write", type=Path, required=True, help="the page")
    path = parser.parse_args().write
    counted = parts()
    path.write_text(fill(path.read_text(encoding="utf-8"), counted), encoding="utf-8")


if __name__ == "__main__":
    main()
