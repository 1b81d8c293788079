"""A reward of one's own: is each frame as bright as the real video? docs/rewards.md walks through it.

Shapes: B videos, T frames, H W pixels. Videos are RGB in [-1, 1].
"""

from dataclasses import dataclass

from torch import Tensor

from rewardfl_trainer.rewards.base import Reference, Reward, RewardResult


@dataclass(frozen=True)
class Brightness(Reference):
    """What is needed of the real videos. Fields are tensors whose first axis counts the videos."""

    mean_B: Tensor


@dataclass(frozen=True)
class ExposureResult(RewardResult):
    """The scores, and by how much the videos are brighter than the real ones."""

    brighter_by: float

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth logging: `exposure_brighter_by` in metrics.jsonl."""
        return {**super().metrics(), "brighter_by": self.brighter_by}


class Exposure(Reward[Brightness, ExposureResult]):
    """1 where a frame is as bright as the real video, 0 where it is `limit` or more away from it.

    Args:
        limit: distance of the mean pixel values, which lie in [-1, 1].

    Raises:
        ValueError: `limit` is not above 0.
    """

    reference_type = Brightness

    def __init__(self, limit: float = 1.0) -> None:
        super().__init__()
        if limit <= 0:
            raise ValueError(f"limit={limit}: must be above 0")
        self.limit = limit

    def reference(self, video_B3THW: Tensor) -> Brightness:
        """Measure the real videos; once a row, kept on disk."""
        return Brightness(video_B3THW.mean(dim=(1, 2, 3, 4)))

    def forward(self, video_B3THW: Tensor, reference: Brightness) -> ExposureResult:
        """Score generated videos; the gradient flows from `score_B` to the pixels."""
        off_BT = video_B3THW.mean(dim=(1, 3, 4)) - reference.mean_B[:, None]
        scores_BT = (1 - off_BT.abs() / self.limit).clamp(min=0)
        return ExposureResult(
            score_B=scores_BT.mean(dim=1),
            frame_scores_BT=scores_BT.detach(),
            brighter_by=float(off_BT.detach().mean()),
        )
