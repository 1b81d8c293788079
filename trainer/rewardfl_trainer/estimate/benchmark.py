"""The A14B columns of the benchmark's table: both forms counted and estimated, as ratios and as text."""

from typing import Any

from .reference import Figures, a14b

PETA, GIGA = 1e15, 1e9


def a14b_numbers() -> dict[str, Any]:
    """Return the ratios and peaks at A14B's size (a few minutes of one core).

    Returns:
        flops_ratio_kl_all and flops_ratio_kl_sampled (DiT and VAE, this form over the reference's), a14b_peak_gb_offload and
        a14b_peak_gb (GB of 10^9 bytes), a14b_peak_gb_reference, and `table`, Markdown.
    """
    reference, every = a14b("reference"), a14b("rewardfl")
    sampled, offloaded = a14b("rewardfl", "sampled"), a14b("rewardfl", offload=True)
    forms = {
        "reference's form": reference,
        "this trainer, `kl_steps: all`": every,
        "this trainer, `kl_steps: sampled`": sampled,
        "this trainer, checkpoints and optimizer offloaded": offloaded,
    }
    return {
        "flops_ratio_kl_all": every.flops / reference.flops,
        "flops_ratio_kl_sampled": sampled.flops / reference.flops,
        "a14b_peak_gb_offload": offloaded.peak_bytes / GIGA,
        "a14b_peak_gb": every.peak_bytes / GIGA,
        "a14b_peak_gb_reference": reference.peak_bytes / GIGA,
        "table": _table(forms, reference.flops),
    }


def _table(forms: dict[str, Figures], base: float) -> str:
    """Return the forms side by side."""
    rows = [
        f"| {name} | {form.flops / PETA:.2f} | {form.flops / base:.3f} | {form.peak_bytes / GIGA:.1f} | {form.moment} |"
        for name, form in forms.items()
    ]
    head = [
        "",
        "Counted at the true size of Wan2.2-I2V-A14B (bf16, LoRA of rank 32, one sample of 480x480x81, one GPU), by",
        "`rewardfl_trainer.estimate`: FLOPs of DiT and VAE, and the most that tensors hold (without CUDA's own 1.5 GB and about 3 %",
        "of the allocator's).",
        "",
        "| form | PFLOP a step | ratio | peak GB | worst moment |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])
