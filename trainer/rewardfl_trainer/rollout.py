"""From a condition and noise to a video: the networks put into the sampler. One place for training, samples and tests.

Must not know of datasets, optimizers or files.

Legend: B batch, C latent channels, t h w latent frames, height and width, T frames, H W pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters

from .conditioning import Condition
from .memory import Checkpointing
from .models import Models
from .sampling import Plan, Velocity, denoise
from .trainable import Trainable
from .wan_dit import predict_velocity
from .wan_vae import decode

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel


class Rollout:
    """Generates videos with the trained model, with or without gradient."""

    def __init__(self, models: Models, trainable: Trainable, plan: Plan, parameters: TrainingParameters) -> None:
        self.models, self.trainable, self.plan = models, trainable, plan
        self.use_kl = parameters.kl_weight > 0
        self.checkpointing = Checkpointing(parameters.use_gradient_checkpointing, parameters.use_gradient_checkpointing_offload)

    @torch.no_grad()
    def video(self, condition: Condition, noise_BCthw: Tensor) -> Tensor:
        """Return the generated video B3THW in [-1, 1]."""
        latents_BCthw, _ = denoise(noise_BCthw, self.plan.schedule, self._velocity(self.models, condition))
        return decode(self.models.vae, latents_BCthw)

    def trained_video(
        self,
        condition: Condition,
        noise_BCthw: Tensor,
        kl_steps: Sequence[int],
        reference_condition: Condition | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the generated video B3THW with its gradient, and the KL to the untrained model.

        Args:
            condition: what is generated.
            noise_BCthw: N(0, 1), in the compute type.
            kl_steps: steps on which the KL is computed.
            reference_condition: the condition as the untrained networks make it; None where they make the same.
        """
        latents_BCthw, kl = denoise(
            noise_BCthw,
            self.plan.schedule,
            self._velocity(self.models, condition),
            window=self.plan.window,
            reference=self._reference(reference_condition or condition) if self.use_kl else None,
            kl_steps=kl_steps,
        )
        return decode(self.models.vae, latents_BCthw, self.checkpointing), kl

    def _velocity(self, models: Models, condition: Condition) -> Velocity:
        """Return the velocity that `models` predict under the condition."""

        def velocity(step: int, latents_BCthw: Tensor) -> Tensor:
            dit: WanModel = models.network(self.plan.experts[step])
            return predict_velocity(
                dit,
                latents_BCthw,
                self.plan.schedule.timestep(step),
                condition.context_BLD,
                condition.image_BCthw,
                self.checkpointing,
            )

        return velocity

    def _reference(self, condition: Condition) -> Velocity:
        """Return the velocity of the untrained model."""
        if self.trainable.reference is not None:
            return self._velocity(self.trainable.reference, condition)
        velocity = self._velocity(self.models, condition)

        def untrained(step: int, latents_BCthw: Tensor) -> Tensor:
            with self.trainable.untrained():
                return velocity(step, latents_BCthw)

        return untrained
