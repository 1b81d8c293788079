"""The rewards of a run together: each is scored by itself, and their terms are added up with weights.

The sum that enters the loss is of (score - baseline) / scale * weight. What people look at (`Scores.reward`) is the mean of the
scores by weight: with one reward, that reward's score. Must not know how a reward is computed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.compat import Conventions

from .base import Reference, RewardContext, RewardResult
from .face import FaceResult, FaceReward
from .registry import AnyReward, identity, label, make_reward


@dataclass(frozen=True)
class References:
    """What each reward knows of the ground truth, by the reward's label."""

    parts: Mapping[str, Reference]

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor as `label/field`; `Rewards.unpacked` makes references of them again."""
        return {f"{name}/{field}": tensor for name, part in self.parts.items() for field, tensor in part.tensors().items()}

    def to(self, device: torch.device | str) -> "References":
        """Return the same on `device`."""
        return References({name: reference.to(device) for name, reference in self.parts.items()})


@dataclass(frozen=True)
class Part:
    """A reward and how it enters the sum."""

    reward: AnyReward
    identity: str = ""
    """What a reference depends on beside the video and the files: the class, its options and its module's source."""
    weight: float = 1.0
    baseline: float = 0.0
    scale: float = 1.0
    dtype: torch.dtype | None = None
    """Type in which the term is computed; None: that of the score."""

    def term(self, score: Tensor) -> Tensor:
        """Return the part's term of the sum."""
        return (score.to(self.dtype or score.dtype) - self.baseline) / self.scale * self.weight


@dataclass(frozen=True)
class Scores:
    """What the rewards say about a batch of videos."""

    value: Tensor
    """The sum of all terms, a scalar with gradient: what the loss takes."""
    reward: float
    """Mean of the scores by weight, over the batch."""
    results: Mapping[str, RewardResult]
    """Each reward's own result, by its label."""

    @property
    def faces(self) -> FaceResult | None:
        """The face reward's result, where there is one."""
        return next((result for result in self.results.values() if isinstance(result, FaceResult)), None)

    @property
    def no_face_fraction(self) -> float:
        """Part of the frames in which no face was found; nan where nobody looked for faces."""
        return math.nan if self.faces is None else self.faces.no_face_fraction

    def details(self) -> dict[str, float]:
        """Return what is logged beside `reward` and `no_face_fraction`: each of several scores, and the rewards' own numbers."""
        values: dict[str, float] = {}
        for name, result in self.results.items():
            numbers = result.metrics()
            score = numbers.pop("reward")
            if len(self.results) > 1:
                values[f"reward_{name}"] = score
            if not isinstance(result, FaceResult):
                values |= {f"{name}_{key}": number for key, number in numbers.items()}
        return values


class Rewards:
    """Scores videos with every reward of a run. `parts` are the rewards by label."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = dict(parts)

    @classmethod
    def load(cls, parameters: TrainingParameters, device: torch.device) -> "Rewards":
        """Make the rewards that the parameters name.

        Raises:
            RewardFLError: a reward cannot be made (exit code 78), or a file that it needs is missing or wrong (66).
        """
        context, parts = RewardContext(parameters, device), {}
        for spec in parameters.reward_specs:
            name = label(spec.name) if label(spec.name) not in parts else spec.name
            baseline = parameters.reward_baseline if spec.baseline is None else spec.baseline
            scale = parameters.reward_scale if spec.scale is None else spec.scale
            dtype = Conventions.of(parameters).loss_dtype
            parts[name] = Part(make_reward(spec, context), identity(spec), spec.weight, baseline, scale, dtype)
        return cls(parts)

    @property
    def face_finder(self) -> FaceReward | None:
        """The reward that looks for faces, where there is one."""
        return next((part.reward for part in self.parts.values() if isinstance(part.reward, FaceReward)), None)

    @torch.no_grad()
    def reference(self, video_B3THW: Tensor) -> References:
        """Return what the rewards need to know of the ground truth."""
        return References({name: part.reward.reference(video_B3THW) for name, part in self.parts.items()})

    def unpacked(self, tensors: Mapping[str, Tensor]) -> References:
        """Return the references whose `tensors()` these are.

        Raises:
            KeyError, TypeError: they are those of other rewards.
        """
        fields: dict[str, dict[str, Tensor]] = {name: {} for name in self.parts}
        for key, tensor in tensors.items():
            name, _, field = key.rpartition("/")
            fields[name][field] = tensor
        return References({name: part.reward.reference_type(**fields[name]) for name, part in self.parts.items()})

    def identities(self) -> dict[str, str]:
        """Return what the references depend on beside the video and the files, by label."""
        return {name: part.identity for name, part in self.parts.items()}

    def __call__(self, video_B3THW: Tensor, references: References) -> Scores:
        """Score generated videos. A reward of weight 0 is scored without gradient."""
        results: dict[str, RewardResult] = {}
        for name, part in self.parts.items():
            with torch.set_grad_enabled(part.weight > 0 and torch.is_grad_enabled()):
                results[name] = part.reward(video_B3THW, references.parts[name])
        means = {name: result.score_B.mean() for name, result in results.items()}
        terms = [part.term(means[name]) for name, part in self.parts.items() if part.weight > 0]
        total = sum(part.weight for part in self.parts.values())
        reward = sum(part.weight * float(means[name].detach()) for name, part in self.parts.items()) / total
        return Scores(sum(terms[1:], start=terms[0]), reward, results)
