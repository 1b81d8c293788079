"""From a condition and noise to a video: the networks put into the sampler. One place for training, samples and tests.

Must not know of datasets, optimizers or files.

Legend: B batch, C latent channels, t h w latent frames, height and width, T frames, H W pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters

from .compat import Conventions
from .conditioning import Condition
from .memory import Checkpointing
from .models import Models
from .sampling import Plan, Velocity, denoise
from .timing import Part, Stopwatch
from .trainable import Trainable
from .wan_dit import predict_velocity
from .wan_vae import decode

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel


class Rollout:
    """Generates videos with the trained model, with or without gradient.

    Args:
        models: the networks.
        trainable: what of them is trained.
        plan: noise levels, experts and window.
        parameters: KL, compatibility and checkpoints.
        stopwatch: is told the seconds of a trained video's parts.
    """

    def __init__(
        self,
        models: Models,
        trainable: Trainable,
        plan: Plan,
        parameters: TrainingParameters,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.models, self.trainable, self.plan = models, trainable, plan
        self.stopwatch = stopwatch or Stopwatch(torch.device("cpu"))
        self.use_kl = parameters.kl_weight > 0
        self.tiles = Conventions.of(parameters).tiles
        self.checkpointing = Checkpointing.of(parameters)

    @torch.no_grad()
    def video(self, condition: Condition, latents_BCthw: Tensor, first_step: int = 0) -> Tensor:
        """Return the generated video B3THW in [-1, 1].

        Args:
            condition: what is generated.
            latents_BCthw: N(0, 1), in the compute type; or what the steps before `first_step` made of it.
            first_step: the first denoising step that is made.
        """
        steps = range(first_step, len(self.plan.schedule))
        clean_BCthw, _ = denoise(latents_BCthw, self.plan.schedule, self._velocity(self.models, condition), steps=steps)
        return decode(self.models.vae, clean_BCthw)

    def trained_video(
        self,
        condition: Condition,
        latents_BCthw: Tensor,
        kl_steps: Sequence[int],
        reference_condition: Condition | None = None,
        first_step: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Return the generated video B3THW with its gradient, and the KL to the untrained model.

        Args:
            condition: what is generated.
            latents_BCthw: N(0, 1), in the compute type; or what the steps before `first_step` made of it.
            kl_steps: steps on which the KL is computed.
            reference_condition: the condition as the untrained networks make it; None where they make the same.
            first_step: the first denoising step that is made; not after the first one of the window.
        """
        clean_BCthw, kl = denoise(
            latents_BCthw,
            self.plan.schedule,
            self._timed("sample", self._velocity(self.models, condition)),
            window=self.plan.window,
            reference=self._timed("reference", self._reference(reference_condition or condition)) if self.use_kl else None,
            kl_steps=kl_steps,
            steps=range(first_step, self.plan.end),
        )
        with self.stopwatch.part("decode"):
            return decode(self.models.vae, clean_BCthw, self.checkpointing, self.tiles), kl

    def _timed(self, part: Part, velocity: Velocity) -> Velocity:
        """Return the velocity with its seconds counted."""

        def timed(step: int, latents_BCthw: Tensor) -> Tensor:
            with self.stopwatch.part(part):
                return velocity(step, latents_BCthw)

        return timed

    def _velocity(self, models: Models, condition: Condition) -> Velocity:
        """Return the velocity that `models` predict under the condition."""
        return velocity_of(models, self.plan, condition, self.checkpointing)

    def _reference(self, condition: Condition) -> Velocity:
        """Return the velocity of the untrained model."""
        if self.trainable.reference is not None:
            return self._velocity(self.trainable.reference, condition)
        velocity = self._velocity(self.models, condition)

        def untrained(step: int, latents_BCthw: Tensor) -> Tensor:
            with self.trainable.untrained():
                return velocity(step, latents_BCthw)

        return untrained


@torch.no_grad()
def leading_steps(models: Models, plan: Plan, condition: Condition, noise_BCthw: Tensor, num_steps: int) -> Tensor:
    """Return the latents after the first `num_steps` denoising steps, made with the networks as they are, without gradient."""
    latents_BCthw, _ = denoise(noise_BCthw, plan.schedule, velocity_of(models, plan, condition), steps=range(num_steps))
    return latents_BCthw


def velocity_of(models: Models, plan: Plan, condition: Condition, checkpointing: Checkpointing | None = None) -> Velocity:
    """Return the velocity that `models`, each at its steps of the plan, predict under the condition."""

    def velocity(step: int, latents_BCthw: Tensor) -> Tensor:
        dit = cast("WanModel", models.network(plan.experts[step]))
        timestep = plan.schedule.timestep(step)
        return predict_velocity(dit, latents_BCthw, timestep, condition.context_BLD, condition.image_BCthw, checkpointing)

    return velocity
