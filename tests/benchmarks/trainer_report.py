"""The table of `make bench-trainer`, as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from rewardfl_trainer.timing import Part

MEBIBYTE = 2**20
PARTS: tuple[str, ...] = get_args(Part)

Step = Mapping[str, Any]
"""What a form says of a step (`trainer_child.step`): seconds, parts (seconds of each), peaks (bytes of each), loss."""


@dataclass(frozen=True)
class Measured:
    """What a form took."""

    steps: Sequence[Step]
    """For their seconds, made by turns with those of the other form."""
    memory_steps: Sequence[Step]
    """For their peaks."""

    def seconds(self, part: str | None = None) -> list[float]:
        """Return the seconds of each step, or of a part of it."""
        return [step["parts"][part] if part else step["seconds"] for step in self.steps]

    def ratio(self, other: "Measured", part: str | None = None) -> float:
        """Return the median of the ratios of neighbouring steps: the seconds of this form over those of the other."""
        pairs = zip(self.seconds(part), other.seconds(part), strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def peak(self, part: str | None = None) -> float:
        """Return the peak bytes of a step, or of a part of it."""
        return float(max(max(step["peaks"].values()) if part is None else step["peaks"][part] for step in self.memory_steps))


INTRODUCTION = """# The training step, measured

Made by `make bench-trainer` on {date} (CPU, fp32; {versions}).

*Reference form*: everything is computed again in every step, the decoder runs on nine overlapping tiles, faces are found and
cropped one frame at a time (`tests/benchmarks/reference_form.py`), as ROLL's Reward FL does. Both forms have the same objective,
window (steps 4 to 7 of 8), rows, noise and LoRA; without the tiles their losses and gradients are equal
(`tests/distributed/test_reference_form.py`). They make their steps by turns, one thread each. Times are medians, ratios the
medians of neighbouring steps. Memory is the process's peak beyond that of the imports. What is kept in the cache (`prepare`
reads it) was put there before; that is not in these numbers. *tiny* is the committed family at 64x64x9; *mid-size* is the same
family three times as wide, with 16 blocks in place of 4 (`tests/benchmarks/midsize.py`), at 96x96x9.

What is saved is mostly decoder, faces and encodings, so the ratio falls as the transformer's share grows: a mid-size family
four times as wide gave 1.5, six times 1.4. At A14B's size, where the transformer is nine tenths, only the FLOPs below are known.

"""


def table(measured: Mapping[str, Mapping[str, Measured]], a14b: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    """Return the whole page."""
    versions = ", ".join(f"{name} {text}" for name, text in numbers["versions"].items())
    text = INTRODUCTION.format(date=numbers["date"], versions=versions)
    for size, forms in measured.items():
        text += section(size, forms["reference"], forms["rewardfl"])
    return text + (a14b_section(a14b["forms"]) if a14b else "")


def section(size: str, reference: Measured, ours: Measured) -> str:
    """Return the table of one configuration."""
    first, our_first = (form.steps[0]["loss"] for form in (reference, ours))
    lines = [
        f"## {size}",
        "",
        "| part | reference s | rewardfl s | ratio | reference MiB | rewardfl MiB |",
        "|---|---|---|---|---|---|",
        *(row(name, reference, ours, name) for name in PARTS),
        row("**step**", reference, ours),
        "",
        f"{len(ours.steps)} steps each. Loss of the first: {first:.5f} and {our_first:.5f} (tiles decode differently).",
        "",
        "",
    ]
    return "\n".join(lines)


def row(name: str, reference: Measured, ours: Measured, part: str | None = None) -> str:
    """Return one line: medians of both forms' seconds, the ratio, and the peaks."""
    times = f"{statistics.median(reference.seconds(part)):.3f} | {statistics.median(ours.seconds(part)):.3f}"
    memory = f"{reference.peak(part) / MEBIBYTE:.0f} | {ours.peak(part) / MEBIBYTE:.0f}"
    return f"| {name} | {times} | {reference.ratio(ours, part):.2f} | {memory} |"


def a14b_section(forms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of what is counted, not measured."""
    lines = [
        "## Wan2.2-I2V-A14B, 480x480x81: counted without weights",
        "",
        "bf16, LoRA of rank 32, batch 1, one GPU. PFLOP of a sample in DiTs and VAE; peak of tensors on the",
        "GPU, without CUDA's own (`rewardfl estimate` counts the trainer's own code on shapes without data).",
        "",
        "| form | PFLOP | peak GB | when |",
        "|---|---|---|---|",
        *(f"| {name} | {form['pflops']:.2f} | {form['peak_gb']:.1f} | {form['moment']} |" for name, form in forms.items()),
    ]
    return "\n".join(lines) + "\n"
