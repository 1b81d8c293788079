"""DeepSpeed configurations by name, as ROLL names them. Batch sizes, precision and clipping come from the training parameters."""

import copy
from typing import Any, Literal

DeepSpeedPreset = Literal["zero0", "zero1", "zero2", "zero2_cpuoffload", "zero3", "zero3_cpuoffload"]

_BUCKETS: dict[str, Any] = {
    "overlap_comm": False,
    "contiguous_gradients": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 500_000_000,
    "allgather_bucket_size": 500_000_000,
}
"""The trained LoRA is small: one bucket holds its gradients, and overlapping them with the backward pass gains nothing."""

_TO_CPU = {"device": "cpu", "pin_memory": True}

_ZERO: dict[str, dict[str, Any]] = {
    "zero0": {"stage": 0},
    "zero1": {"stage": 1, **_BUCKETS},
    "zero2": {"stage": 2, **_BUCKETS},
    "zero2_cpuoffload": {"stage": 2, **_BUCKETS, "offload_optimizer": _TO_CPU},
    "zero3": {"stage": 3, **_BUCKETS, "stage3_gather_16bit_weights_on_model_save": False},
    "zero3_cpuoffload": {
        "stage": 3,
        **_BUCKETS,
        "offload_optimizer": _TO_CPU,
        "offload_param": _TO_CPU,
        "stage3_gather_16bit_weights_on_model_save": False,
    },
}


def preset_config(preset: DeepSpeedPreset) -> dict[str, Any]:
    """Return the DeepSpeed configuration of `preset`, a fresh copy."""
    return {"zero_optimization": copy.deepcopy(_ZERO[preset]), "zero_allow_untested_optimizer": True}
