"""What DeepSpeed adds to a step, from its section and the sizes of what is trained.

DeepSpeed needs processes and devices and cannot be run on shapes, so this is arithmetic. It follows DeepSpeed 0.19:
`runtime/zero/stage_1_and_2.py` and `stage3.py` (partitions, buckets, fp32 masters).
"""

from dataclasses import dataclass
from typing import Any

from ..engine import DEFAULT_BUCKET

FP32_BYTES = 4
ADAM_MOMENTS = 2

MAX_LIVE_PARAMETERS = 1_000_000_000
"""DeepSpeed's default of stage3_max_live_parameters: how many of a partitioned network's weights are whole at a time."""


@dataclass(frozen=True)
class Trained:
    """Sizes of what is trained."""

    numel: int
    """Trained parameters."""
    element_bytes: float
    """Bytes of each on average, and of its gradient: 4 for a LoRA, little more than the compute type's in full training."""
    network_bytes: int
    """All weights of the networks that hold them, frozen ones included."""
    network_numel: int


@dataclass(frozen=True)
class EngineBytes:
    """Bytes on each GPU beside those of a step that keeps whole weights and whole gradients."""

    weights: float
    """0, or negative where ZeRO 3 spreads the trained networks over the GPUs."""
    gradients: float
    optimizer: float
    buffers: float
    host: float
    whole_gradients: bool
    """Whether the step's own gradients stay until the update as well."""


def engine_bytes(section: dict[str, Any], trained: Trained, world_size: int) -> EngineBytes:
    """Return what DeepSpeed holds.

    Args:
        section: DeepSpeed's configuration.
        trained: what is trained.
        world_size: processes over which ZeRO spreads.
    """
    zero = section.get("zero_optimization", {})
    stage = int(zero.get("stage", 0))
    fp32, masters = trained.numel * FP32_BYTES, _needs_masters(section, stage)
    state = (ADAM_MOMENTS + masters) * fp32
    if stage == 0:
        return EngineBytes(0, fp32 if masters and trained.element_bytes < FP32_BYTES else 0, state, 0, 0, whole_gradients=True)
    shard = 1 / world_size
    offloads = _device(zero, "offload_optimizer") != "none"
    gradients = fp32 * shard
    bucket = int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)) * trained.element_bytes
    contiguous = zero.get("contiguous_gradients", True)
    buffers = bucket * (2 if zero.get("overlap_comm") else 1) if contiguous else 0
    weights = _spread(zero, trained, world_size) if stage >= 3 else 0
    return EngineBytes(
        weights=weights,
        gradients=0 if offloads else gradients,
        optimizer=0 if offloads else state * shard,
        buffers=buffers,
        host=(gradients + state * shard if offloads else 0) + (trained.network_bytes * shard if _offloads_weights(zero) else 0),
        whole_gradients=stage == 1,
    )


def _needs_masters(section: dict[str, Any], stage: int) -> int:
    """Return 1 where the optimizer has fp32 copies of its own: under ZeRO always, otherwise in bf16."""
    return int(stage > 0 or bool(section.get("bf16", {}).get("enabled")))


def _spread(zero: dict[str, Any], trained: Trained, world_size: int) -> float:
    """Return by how much the trained networks shrink on a GPU under ZeRO 3 (negative)."""
    element = trained.network_bytes / trained.network_numel
    live = min(trained.network_bytes, float(zero.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS)) * element)
    resident = 0.0 if _offloads_weights(zero) else trained.network_bytes / world_size
    return min(0.0, resident + live - trained.network_bytes)


def _offloads_weights(zero: dict[str, Any]) -> bool:
    return int(zero.get("stage", 0)) >= 3 and _device(zero, "offload_param") != "none"


def _device(zero: dict[str, Any], name: str) -> str:
    return str(zero.get(name, {}).get("device", "none"))
