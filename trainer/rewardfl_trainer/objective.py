"""The loss of Reward FL. Only arithmetic: what is scored and sampled is decided elsewhere."""

from dataclasses import dataclass

from torch import Tensor

from rewardfl_api.training import TrainingParameters


@dataclass(frozen=True)
class Objective:
    """loss = -(score - reward_baseline) / reward_scale * reward_weight + kl_weight * KL."""

    reward_baseline: float
    reward_scale: float
    reward_weight: float
    kl_weight: float

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Objective":
        """Return the objective that the training parameters describe."""
        return cls(parameters.reward_baseline, parameters.reward_scale, parameters.reward_weight, parameters.kl_weight)

    def loss(self, score: Tensor, kl: Tensor) -> Tensor:
        """Return the scalar loss of one sample from its score and its KL, both scalars."""
        reward = (score - self.reward_baseline) / self.reward_scale
        return -reward * self.reward_weight + self.kl_weight * kl
