"""The interface of a reward: a frozen torch module that maps a video and a reference to a score and a diagnosis.

A reward knows nothing of sampling, of the loss or of how its score is weighted; it must not train, print or write files.
docs/rewards.md shows how to write one.

Shapes: B videos, T frames, H W pixels. Videos are RGB in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from rewardfl_api.training import TrainingParameters


@dataclass(frozen=True)
class Reference:
    """What a reward needs to know of ground-truth videos. Every field is a tensor whose first axis counts the videos."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device | str) -> Self:
        """Return the same on `device`."""
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class RewardResult:
    """What a reward says about a batch of videos. A reward subclasses it to add its own diagnosis."""

    score_B: Tensor
    """One score a video; carries the gradient towards the video."""
    frame_scores_BT: Tensor
    """The score of each frame, detached; nan where a frame could not be scored."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth logging, by name."""
        return {"reward": float(self.score_B.detach().mean())}


@dataclass(frozen=True)
class RewardContext:
    """What a reward may look at while it is made."""

    parameters: TrainingParameters
    """The training parameters; every path in them is local."""
    device: torch.device
    """Where videos and references will be."""


ReferenceT = TypeVar("ReferenceT", bound=Reference)
"""What a reward computes once from the ground-truth video."""

ResultT = TypeVar("ResultT", bound=RewardResult)
"""The reward's own result, with its own diagnosis."""


class Reward(nn.Module, ABC, Generic[ReferenceT, ResultT]):
    """A frozen reward. Gradients flow through it to the video, never into it."""

    reference_type: ClassVar[type[Reference]]
    """What `reference` returns: references are kept on disk as their tensors."""

    @classmethod
    def create(cls, context: RewardContext, options: Mapping[str, Any]) -> Self:
        """Return the reward as a run needs it, frozen and on the device. By default the options are the class's arguments.

        Raises:
            TypeError: an option that the class does not take, or one that is missing.
            ValueError: an option has a value that the class cannot use.
            RewardFLError: a file that the reward needs is missing or wrong.
        """
        return cls(**options).to(context.device).freeze()

    @abstractmethod
    def reference(self, video_B3THW: Tensor) -> ReferenceT:
        """Return what `forward` needs to know of the ground-truth videos. Computed once a row, without gradient."""

    @abstractmethod
    def forward(self, video_B3THW: Tensor, reference: ReferenceT) -> ResultT:
        """Score generated videos against the reference."""

    def __call__(self, video_B3THW: Tensor, reference: ReferenceT) -> ResultT:
        """Score generated videos against the reference (torch's call, with its types)."""
        result: ResultT = super().__call__(video_B3THW, reference)
        return result

    def freeze(self) -> Self:
        """Take every parameter out of training, and switch to evaluation for good."""
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation: a parent's `train()` must not wake a reward's batch norms. `mode` is ignored."""
        del mode
        return super().train(False)
