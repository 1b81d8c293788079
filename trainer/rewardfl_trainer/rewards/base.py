"""The interface of a reward: a frozen torch module that maps a video and a reference to a score and a diagnosis.

A reward knows nothing of sampling, of the loss or of how its score is weighted; it must not train, print or write files.

Shapes: B videos, T frames, H W pixels. Videos are RGB in [-1, 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from torch import Tensor, nn

ReferenceT = TypeVar("ReferenceT")
"""What a reward computes once from the ground-truth video."""

ResultT = TypeVar("ResultT", bound="RewardResult")
"""The reward's own result, with its own diagnosis."""


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


class Reward(nn.Module, ABC, Generic[ReferenceT, ResultT]):
    """A frozen reward. Gradients flow through it to the video, never into it."""

    @abstractmethod
    def reference(self, video_B3THW: Tensor) -> ReferenceT:
        """Return what `forward` needs to know of the ground-truth videos. Computed without gradient."""

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
