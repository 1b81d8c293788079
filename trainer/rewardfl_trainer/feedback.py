"""One sample of Reward Feedback Learning: generate with gradient, score, return the loss.

The steps 2 to 7 of docs/algorithm.md in order. Must not step an optimizer or write anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rewardfl_api.training import TrainingParameters

from .conditioning import Condition, Conditioner
from .noise import kl_steps
from .objective import Objective
from .preparation import Prepared, Preparer
from .rewards.composition import Rewards
from .rollout import Rollout
from .trainable import Trainable


@dataclass(frozen=True)
class Outcome:
    """What became of a sample; plain numbers."""

    loss: float
    reward: float
    """Mean of the scores by weight."""
    kl: float
    no_face_fraction: float
    """nan where no reward looks for faces."""
    details: Mapping[str, float] = field(default_factory=dict)
    """Each of several scores, and the rewards' own numbers; the same names for every sample."""

    def values(self) -> dict[str, float]:
        """Return every number by the name that it is logged under."""
        plain = {"reward": self.reward, "loss": self.loss, "kl": self.kl, "no_face_fraction": self.no_face_fraction}
        return {**plain, **self.details}


class RewardFeedback:
    """The loss of a sample.

    Args:
        rollout: generates videos.
        preparer: says where a generation starts, and makes conditions with the trained networks.
        reward: scores videos.
        trainable: what is trained.
        parameters: objective, seed and noises per sample.
    """

    def __init__(
        self,
        rollout: Rollout,
        preparer: Preparer,
        reward: Rewards,
        trainable: Trainable,
        parameters: TrainingParameters,
    ) -> None:
        self.rollout, self.preparer, self.reward, self.parameters = rollout, preparer, reward, parameters
        self.objective = Objective.of(parameters)
        self.untrained_conditioner = _untrained(preparer.conditioner, trainable)

    def loss(self, prepared: Prepared, visit: int) -> tuple[Tensor, Outcome]:
        """Return the loss, with its gradient, and what became of the sample.

        Args:
            prepared: the row.
            visit: how often the row was trained on before; decides which of its noises is used.
        """
        seed, row = self.parameters.seed, prepared.row.index
        condition, untrained = self._conditions(prepared)
        draw = visit % self.parameters.noise_seeds_per_sample
        start = self.preparer.start(prepared.position, draw, condition=condition)
        sampled = self.parameters.kl_steps == "sampled"
        steps = kl_steps(self.rollout.plan.window, sampled=sampled, seed=seed, row=row, visit=visit)
        video_B3THW, kl = self.rollout.trained_video(condition, start.latents_BCthw, steps, untrained, start.first_step)
        with self.rollout.stopwatch.part("reward"):
            scores = self.reward(video_B3THW, prepared.reference)
        loss = self.objective.combined(scores.value, kl)
        return loss, Outcome(float(loss.detach()), scores.reward, float(kl.detach()), scores.no_face_fraction, scores.details())

    def _conditions(self, prepared: Prepared) -> tuple[Condition, Condition | None]:
        """Return the condition, with gradient where its networks are trained, and the untrained one where it differs."""
        if prepared.condition is not None:
            return prepared.condition, None
        if prepared.video_3THW is None or self.preparer.conditioner is None:
            raise ValueError(f"{prepared.row}: prepared with neither condition nor video")
        prompt = prepared.row.prompt
        condition = self.preparer.conditioner(prompt, prepared.video_3THW)
        if self.untrained_conditioner is None:
            return condition, None
        return condition, self.untrained_conditioner(prompt, prepared.video_3THW)


def _untrained(conditioner: Conditioner | None, trainable: Trainable) -> Conditioner | None:
    """Return a conditioner with the untrained networks; None where nobody asks for one."""
    if conditioner is None or trainable.reference is None or not trainable.trains_condition:
        return None
    return Conditioner(trainable.reference, conditioner.inputs, conditioner.dtype, conditioner.device)
