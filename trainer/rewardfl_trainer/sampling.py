"""The flow-matching sampler: schedule, expert choice, Euler step and the gradient window, as pure functions.

It knows velocities, not models: what predicts them is handed in. Must not load, decode, score or log anything.

Legend: B batch, C latent channels, t h w latent frames, height and width, N denoising steps.
Source of the schedule and of the KL: ROLL's Reward FL (see docs/algorithm.md, "One training step").
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters

from .compat import Conventions

NUM_TRAIN_TIMESTEPS = 1000
"""Timesteps run from 1000 (noise) to 0 (video), as Wan was trained."""

Expert = Literal["dit", "dit2"]

Velocity = Callable[[int, Tensor], Tensor]
"""Predicts the velocity (noise - video) at denoising step `step` from `latents_BCthw`; same shape as the latents."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels of the N denoising steps: `sigmas` has N + 1 entries, from 1 to 0, in fp32."""

    sigmas: Tensor

    @classmethod
    def shifted(cls, num_steps: int, shift: float) -> "Schedule":
        """Return sigma = shift * u / (1 + (shift - 1) * u) for u from 1 to 0 in `num_steps` equal steps."""
        u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        return cls((shift * u / (1 + (shift - 1) * u)).float())

    def __len__(self) -> int:
        return len(self.sigmas) - 1

    def timestep(self, step: int) -> Tensor:
        """Return the fp32 timestep of `step`, shape [1]. In bf16 937.5 would become 936."""
        return self.sigmas[step : step + 1] * NUM_TRAIN_TIMESTEPS

    def expert(self, step: int, low: float, high: float) -> Expert:
        """Return the model that denoises at `step`: `dit` while t/1000 lies in [low, high], else `dit2`. Both 1: one model."""
        if low >= 1 and high >= 1:
            return "dit"
        return "dit" if low <= float(self.sigmas[step]) <= high else "dit2"


@dataclass(frozen=True)
class Window:
    """The denoising steps that carry gradient: `first` to `last`, both included."""

    first: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.first <= step <= self.last

    def __len__(self) -> int:
        return self.last - self.first + 1

    @property
    def steps(self) -> range:
        """The steps, in order."""
        return range(self.first, self.last + 1)


@dataclass(frozen=True)
class Plan:
    """Schedule, experts and window of a run."""

    schedule: Schedule
    experts: tuple[Expert, ...]
    window: Window
    end: int
    """The step before which a trained video is decoded: one past the last, where none is left out."""

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Plan":
        """Return the plan that the training parameters describe."""
        schedule = Schedule.shifted(parameters.num_inference_steps, parameters.sigma_shift)
        conventions = Conventions.of(parameters)
        low, high = parameters.min_timestep_boundary, parameters.max_timestep_boundary
        if conventions.boundaries is not None and not parameters.uses_single_dit:
            low, high = conventions.boundaries
        experts = tuple(schedule.expert(step, low, high) for step in range(len(schedule)))
        window = Window(parameters.mid_timestep, parameters.final_timestep)
        return cls(schedule, experts, window, len(schedule) if conventions.finish_denoising else window.last + 1)

    @property
    def window_experts(self) -> set[Expert]:
        """The models that carry gradient."""
        return {self.experts[step] for step in self.window.steps}


def euler_step(latents_BCthw: Tensor, velocity_BCthw: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Return the latents at `sigma_next`, computed in fp32 (or wider) and cast back to the latents' type."""
    wide = torch.promote_types(latents_BCthw.dtype, torch.float32)
    moved = latents_BCthw.to(wide) + velocity_BCthw.to(wide) * (sigma_next - sigma).to(latents_BCthw.device)
    return moved.to(latents_BCthw.dtype)


def kl_term(velocity_BCthw: Tensor, reference_BCthw: Tensor, sigma: Tensor) -> Tensor:
    """Return mean((v - v_ref)^2 / (2 sigma^2)): the KL of two Gaussian steps with the same variance. In fp32 or wider."""
    wide = torch.promote_types(velocity_BCthw.dtype, torch.float32)
    difference = velocity_BCthw.to(wide) - reference_BCthw.to(wide)
    return (difference.square() / (2 * sigma.square()).to(difference.device)).mean()


def denoise(
    noise_BCthw: Tensor,
    schedule: Schedule,
    velocity: Velocity,
    *,
    window: Window | None = None,
    reference: Velocity | None = None,
    kl_steps: Collection[int] = (),
    steps: range | None = None,
) -> tuple[Tensor, Tensor]:
    """Denoise all the way to sigma 0, or only the given steps.

    The gradient flows through the velocities of the steps in `window`. Steps after it add their velocity as a constant:
    the latents that are decoded are clean, and the window's gradient passes straight through.

    Args:
        noise_BCthw: N(0, 1), in the compute type; or the latents that `steps` begins with.
        schedule: the noise levels.
        velocity: the model that is trained.
        window: steps with gradient. None: none.
        reference: the untrained model. None: no KL.
        kl_steps: steps of the window on which the KL is computed.
        steps: the steps to make. None: all.

    Returns:
        The latents after the last of these steps (clean after the schedule's last), and the KL averaged over
        `kl_steps` (a zero without any).
    """
    latents_BCthw = noise_BCthw
    terms: list[Tensor] = []
    for step in range(len(schedule)) if steps is None else steps:
        sigma, sigma_next = schedule.sigmas[step], schedule.sigmas[step + 1]
        trained = window is not None and step in window
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            v_BCthw = velocity(step, latents_BCthw if trained else latents_BCthw.detach())
        if reference is not None and step in kl_steps:
            with torch.no_grad():
                reference_BCthw = reference(step, latents_BCthw)
            terms.append(kl_term(v_BCthw, reference_BCthw, sigma))
        latents_BCthw = euler_step(latents_BCthw, v_BCthw, sigma, sigma_next)
    kl = torch.stack(terms).mean() if terms else noise_BCthw.new_zeros((), dtype=torch.float32)
    return latents_BCthw, kl
