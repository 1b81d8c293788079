"""The estimate as text for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import Any

from .fit import Fit, needed_bytes
from .result import Estimate, Moment

PETA, GIGA = 1e15, 1e9


def as_json(estimate: Estimate, fits: Sequence[Fit]) -> dict[str, Any]:
    """Return plain values: FLOPs, bytes and seconds, without prefixes, by the keys that docs/operations.md lists."""
    return {
        **asdict(estimate),
        "flops_per_step": estimate.flops_per_step,
        "seconds_per_step": estimate.seconds_per_step,
        "peak_bytes": estimate.peak_bytes,
        "needed_bytes": needed_bytes(estimate),
        "fits": [
            {
                "gpu_gigabytes": fit.gigabytes,
                "preset": fit.settings.preset if fit.settings else None,
                "use_gradient_checkpointing_offload": fit.settings.offload if fit.settings else None,
                "needed_bytes": fit.needed,
                "worst_moment": fit.moment,
            }
            for fit in fits
        ],
    }


def as_text(estimate: Estimate, fits: Sequence[Fit]) -> str:
    """Return a page of text."""
    video = estimate.video
    head = (
        f"{estimate.models}: {video.width}x{video.height}, {video.num_frames} frames, {estimate.tokens} tokens; "
        f"{estimate.trained_parameters / 1e6:.2f} M trained parameters; {estimate.world_size} GPUs, ZeRO {estimate.zero_stage}"
    )
    parts = [
        head,
        f"\nCompute of a step on one GPU: {estimate.flops_per_step / PETA:.2f} PFLOP "
        f"({estimate.samples_per_step} samples), about {estimate.seconds_per_step:.0f} s at {estimate.tflops:.0f} TFLOP/s",
        _table(estimate.flops, PETA, "PFLOP a sample"),
    ]
    if estimate.first_phase_flops:
        parts += ["\nOnce per row and noise, before training:", _table(estimate.first_phase_flops, PETA, "PFLOP")]
    parts += ["\nMemory of a GPU while training", _moment(estimate.peak)]
    if estimate.first_phase_peak:
        first = estimate.first_phase_peak
        parts.append(f"  {first.name}: {first.total / GIGA:.2f} GB")
    parts += [
        f"  with CUDA's own: {needed_bytes(estimate) / GIGA:.1f} GB",
        f"  CPU memory for what is kept there: {estimate.host_bytes / GIGA:.1f} GB a process",
        f"\nModel files to stage: {_staged(estimate)} (the dataset comes on top)",
        "\nThe first settings that fit, in an order assumed from fastest to most frugal (never timed)",
        *(_fit(fit) for fit in fits),
    ]
    return "\n".join(parts)


def _staged(estimate: Estimate) -> str:
    known = f"{estimate.staged_bytes / GIGA:.1f} GB"
    if estimate.staged_bytes_fp32 <= estimate.staged_bytes:
        return known
    return f"{known} with the DiTs in bf16, {estimate.staged_bytes_fp32 / GIGA:.1f} GB in fp32 as Wan-AI publishes them"


def _table(values: Mapping[str, float], unit: float, title: str) -> str:
    rows = [f"  {name:<12}{value / unit:10.3f}" for name, value in _ordered(values)]
    return "\n".join([f"  {'part':<12}{title:>16}", *rows])


def _ordered(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return parts from the largest to the smallest, without those that show as nothing."""
    return sorted(((name, value) for name, value in values.items() if value), key=itemgetter(1), reverse=True)


def _moment(moment: Moment) -> str:
    rows = [f"  {name:<12}{size / GIGA:10.2f}" for name, size in _ordered(moment.bytes_by_part)]
    return "\n".join([*rows, f"  {'GB in all':<12}{moment.total / GIGA:10.2f}  ({moment.name})"])


def _fit(fit: Fit) -> str:
    if fit.settings is None:
        return f"  {fit.gigabytes:>4} GB: none; the most frugal ones need {fit.needed / GIGA:.1f} GB ({fit.moment})"
    return f"  {fit.gigabytes:>4} GB: {fit.settings} ({fit.needed / GIGA:.1f} GB)"
