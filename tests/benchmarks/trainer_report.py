"""The table of `make bench-trainer`, as Markdown."""

from collections.abc import Mapping
from typing import Any

MEBIBYTE = 2**20

INTRODUCTION = """# The training step, measured

Made by `make bench-trainer` on {date} (CPU, fp32; {versions}). *Reference form*: everything is computed again in every step, the
decoder runs on nine overlapping tiles, faces are found and cropped one frame at a time (`tests/benchmarks/reference_form.py`), as
ROLL's Reward FL does. Both forms have the same objective, window (steps 4 to 7 of 8), rows, noise and LoRA. Times are medians;
machines differ, so look at the ratios. Memory is the process's peak beyond that of the imports.

"""


def table(measured: Mapping[str, Mapping[str, Any]], a14b: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    """Return the whole page."""
    versions = ", ".join(f"{name} {text}" for name, text in numbers["versions"].items())
    text = INTRODUCTION.format(date=numbers["date"], versions=versions)
    for size, forms in measured.items():
        text += section(size, forms["reference"], forms["rewardfl"])
    return text + (a14b_section(a14b["forms"]) if a14b else "")


def section(size: str, reference: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return the table of one configuration."""
    lines = [
        f"## {size}",
        "",
        "| part | reference s | rewardfl s | ratio | reference MiB | rewardfl MiB |",
        "|---|---|---|---|---|---|",
    ]
    parts = [name for name in reference["seconds_by_part"] if name in ours["seconds_by_part"]]
    for name in parts:
        key = name.removeprefix("seconds_")
        lines.append(
            row(
                key,
                reference["seconds_by_part"][name],
                ours["seconds_by_part"][name],
                reference["peak_bytes_by_part"].get(key, 0),
                ours["peak_bytes_by_part"].get(key, 0),
            )
        )
    lines.append(row("**step**", reference["seconds"], ours["seconds"], reference["peak_bytes"], ours["peak_bytes"]))
    lines += ["", f"Loss of the first step: {reference['loss']:.5f} and {ours['loss']:.5f}.", "", ""]
    return "\n".join(lines)


def row(name: str, before: float, after: float, bytes_before: float, bytes_after: float) -> str:
    """Return one line."""
    ratio = f"{before / after:.2f}" if after > 0 else ""
    return f"| {name} | {before:.3f} | {after:.3f} | {ratio} | {bytes_before / MEBIBYTE:.0f} | {bytes_after / MEBIBYTE:.0f} |"


def a14b_section(forms: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of what is counted, not measured."""
    lines = [
        "## Wan2.2-I2V-A14B, 480x480x81: counted without weights",
        "",
        "bf16, LoRA of rank 32, batch 1, one GPU. PFLOP of a sample in DiTs and VAE; peak of tensors on the",
        "GPU, without CUDA's own (`rewardfl estimate` counts the trainer's own code on fake tensors).",
        "",
        "| form | PFLOP | peak GB | when |",
        "|---|---|---|---|",
        *(f"| {name} | {form['pflops']:.2f} | {form['peak_gb']:.1f} | {form['moment']} |" for name, form in forms.items()),
    ]
    return "\n".join(lines) + "\n"
