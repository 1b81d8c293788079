"""The loss of Reward FL. Only arithmetic: what is scored and sampled is decided elsewhere."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters

from .compat import Conventions


@dataclass(frozen=True)
class Objective:
    """loss = -(score - reward_baseline) / reward_scale * reward_weight + kl_weight * KL."""

    reward_baseline: float
    reward_scale: float
    reward_weight: float
    kl_weight: float
    dtype: torch.dtype | None = None
    """Type to which every operation on the score rounds; None: the score's own."""

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Objective":
        """Return the objective that the training parameters describe."""
        return cls(
            parameters.reward_baseline,
            parameters.reward_scale,
            parameters.reward_weight,
            parameters.kl_weight,
            Conventions.of(parameters).loss_dtype,
        )

    def loss(self, score: Tensor, kl: Tensor) -> Tensor:
        """Return the scalar loss of one sample from the score of its only reward and its KL, both scalars."""
        return self.combined((score.to(self.dtype or score.dtype) - self.reward_baseline) / self.reward_scale, kl)

    def combined(self, value: Tensor, kl: Tensor) -> Tensor:
        """Return the scalar loss from the sum of the rewards' terms (`rewards.composition`), each (score - baseline) / scale."""
        loss = -value * self.reward_weight + self.kl_weight * kl
        return loss.to(self.dtype or loss.dtype)
