"""Wan2.2-I2V-A14B at 480x480x81 in two forms: as this trainer does it, and straightforwardly, as ROLL's Reward FL did.

For the benchmark's table. The straightforward form keeps every network on the GPU, recomputes everything in every step, has a
checkpoint for each block, and decodes in overlapping tiles with a checkpoint for each. It is made of the trainer's own parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from ..compat import Tiles
from ..conditioning import Condition
from ..memory import Checkpointing
from ..rollout import Rollout
from ..sampling import denoise
from ..wan_vae import SPATIAL_FACTOR, _tile_starts, decode
from .count import count_step
from .networks import a14b as a14b_networks
from .result import Estimator, video_of, worst_moment
from .step import DECODE, ENCODE, REWARD, TEXT

Form = Literal["rewardfl", "reference"]

ENCODES = 2
"""The reference encodes the whole video and its first frame in every step; one encoding is in the count already."""

A14B_PARAMETERS = {
    "model_paths": ["hf://Wan-AI/Wan2.2-I2V-A14B"],
    "reward_model_path": "s3://models/antelopev2",
    "trainable_models": "dit2",
    "lora_base_model": "dit2",
    "min_timestep_boundary": 0.9,
}

REFERENCE_PARAMETERS = {
    "cache_conditions": False,
    "cache_references": False,
    "cache_prefix": False,
    "gradient_checkpointing_blocks": 1,
    "gradient_checkpointing_attention": 0,
}


@dataclass(frozen=True)
class Figures:
    """What a form needs for a sample."""

    flops: float
    """Of both DiTs and the VAE; text encoder and face networks left out."""
    peak_bytes: float
    """Of one GPU: tensors, without CUDA's own."""
    moment: str
    """When that is."""
    bytes_by_part: dict[str, float]


class FirstTileRollout(Rollout):
    """Decodes one tile in one checkpoint, with black around it: the largest of the tiles, which are decoded one by one."""

    def trained_video(
        self,
        condition: Condition,
        latents_BCthw: Tensor,
        kl_steps: Sequence[int],
        reference_condition: Condition | None = None,
        first_step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return a video, all but one tile of it black, and the KL."""
        plan = self.plan
        velocity, reference = self._velocity(self.models, condition), self._reference(reference_condition or condition)
        clean_BCthw, kl = denoise(
            latents_BCthw, plan.schedule, velocity, window=plan.window, reference=reference, kl_steps=kl_steps
        )
        size, (height, width) = Tiles().size, clean_BCthw.shape[-2:]
        tile_B3THW = Checkpointing().run(decode, self.models.vae, clean_BCthw[..., : size[0], : size[1]])
        missing = (width - min(size[1], width), height - min(size[0], height))
        return functional.pad(tile_B3THW, (0, missing[0] * SPATIAL_FACTOR, 0, missing[1] * SPATIAL_FACTOR)), kl


def a14b(form: Form, kl_steps: Literal["all", "sampled"] = "all", *, offload: bool = False) -> Figures:
    """Return what Wan2.2-I2V-A14B needs: bf16, LoRA of rank 32, batch 1, 480x480, 81 frames, one GPU.

    Args:
        form: this trainer's, or the straightforward one.
        kl_steps: on which steps of the window the KL is computed; the reference knows only `all`.
        offload: whether checkpointed activations, and the optimizer, are kept in CPU memory.
    """
    extra = REFERENCE_PARAMETERS if form == "reference" else {"kl_steps": kl_steps}
    parameters = TrainingParameters.model_validate({**A14B_PARAMETERS, **extra, "use_gradient_checkpointing_offload": offload})
    if form == "reference":
        return _reference(parameters)
    preset: DeepSpeedPreset = "zero2_cpuoffload" if offload else "zero0"
    config = TrainerConfig(dataset="-", output="-", training=parameters, deepspeed=preset_config(preset))
    estimate = Estimator(a14b_networks()).estimate(config, world_size=1)
    parts = {name: value for name, value in estimate.flops.items() if name not in (REWARD, "conditions")}
    worst = estimate.worst
    return Figures(sum(parts.values()), worst.total, worst.name, worst.bytes_by_part)


def _reference(parameters: TrainingParameters) -> Figures:
    """Count the straightforward form: the largest tile for memory, and all tiles by their area for FLOPs."""
    video = video_of(parameters)
    counts = count_step(a14b_networks(), parameters, video, FirstTileRollout)
    share = _tiled_area(video.height // SPATIAL_FACTOR, video.width // SPATIAL_FACTOR)
    factors = {DECODE: share, ENCODE: ENCODES, REWARD: 0, TEXT: 0}
    flops = sum(value * factors.get(work[0], 1) for work, value in counts.flops.items())
    worst = worst_moment(counts)
    return Figures(flops, worst.total, worst.name, worst.bytes_by_part)


def _tiled_area(height: int, width: int) -> float:
    """Return the area of all tiles over that of the first one."""
    tiles = Tiles()
    covered = [
        sum(min(start + size, length) - start for start in _tile_starts(length, size, stride))
        for length, size, stride in zip((height, width), tiles.size, tiles.stride, strict=True)
    ]
    return covered[0] * covered[1] / (min(tiles.size[0], height) * min(tiles.size[1], width))
