"""Which settings fit common GPUs: the ones that change no result, in an order assumed from the fastest to the most frugal.

Tried are DeepSpeed's presets and checkpoint offload; what is generated and trained stays as the configuration says.
"""

from dataclasses import dataclass

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.trainer_config import TrainerConfig

from .result import Estimate, Estimator

GPU_BYTES = {24: 25.2e9, 48: 47.6e9, 80: 84.9e9, 141: 150.0e9}
"""What CUDA offers of GPUs by the gigabytes in their names: RTX 4090, L40S (with ECC), H100, H200."""

RUNTIME_BYTES = 1.5e9
"""CUDA's context, and the workspaces of cuBLAS and cuDNN: about this much on every GPU."""

FRAGMENTATION = 0.03
"""Part of the peak that the allocator holds without using it."""


@dataclass(frozen=True)
class Settings:
    """What can be changed without changing results."""

    offload: bool
    preset: DeepSpeedPreset

    def __str__(self) -> str:
        """Name the settings as a configuration spells them."""
        return f"deepspeed.preset {self.preset}" + (", use_gradient_checkpointing_offload" if self.offload else "")

    def applied(self, config: TrainerConfig) -> TrainerConfig:
        """Return the configuration with these settings."""
        training = config.training.copy_with(use_gradient_checkpointing=True, use_gradient_checkpointing_offload=self.offload)
        return config.model_copy(update={"training": training, "deepspeed": preset_config(self.preset)})


@dataclass(frozen=True)
class Fit:
    """The first settings that fit a GPU, and what they need; None where none do."""

    gigabytes: int
    settings: Settings | None
    needed: float
    """Bytes that they need on the GPU, or that the most frugal ones would."""
    moment: str
    """When they need them."""


def needed_bytes(estimate: Estimate) -> float:
    """Return the bytes that a GPU must have: the peak, the allocator's waste and CUDA's own."""
    return estimate.peak_bytes * (1 + FRAGMENTATION) + RUNTIME_BYTES


CANDIDATES = (
    Settings(offload=False, preset="zero0"),
    Settings(offload=False, preset="zero2"),
    Settings(offload=True, preset="zero0"),
    Settings(offload=True, preset="zero2"),
    Settings(offload=True, preset="zero2_cpuoffload"),
    Settings(offload=False, preset="zero3"),
    Settings(offload=True, preset="zero3"),
    Settings(offload=True, preset="zero3_cpuoffload"),
)
"""In the order of what they are assumed to cost in time, which was never measured: ZeRO 3 gathers all
weights of the trained network for every pass."""


def fits(estimator: Estimator, config: TrainerConfig, world_size: int) -> list[Fit]:
    """Return the first settings that fit, for each common size of GPU."""
    tried = _tried(estimator, config, world_size)
    return [_fit(gigabytes, available, tried) for gigabytes, available in GPU_BYTES.items()]


def fit_to(estimator: Estimator, config: TrainerConfig, world_size: int, available: float) -> Fit:
    """Return the first settings that fit so many bytes."""
    return _fit(round(available / 1e9), available, _tried(estimator, config, world_size))


def _tried(estimator: Estimator, config: TrainerConfig, world_size: int) -> list[tuple[Settings, Estimate]]:
    """Return the estimate with each of the settings."""
    return [(settings, estimator.estimate(settings.applied(config), world_size)) for settings in CANDIDATES]


def _fit(gigabytes: int, available: float, tried: list[tuple[Settings, Estimate]]) -> Fit:
    for settings, estimate in tried:
        if needed_bytes(estimate) <= available:
            return Fit(gigabytes, settings, needed_bytes(estimate), estimate.worst.name)
    least = min((estimate for _, estimate in tried), key=needed_bytes)
    return Fit(gigabytes, None, needed_bytes(least), least.worst.name)
