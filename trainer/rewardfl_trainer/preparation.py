"""What is computed once per dataset row and kept: its condition and the faces of its ground-truth video.

Kept in CPU memory, for the rows used last. What a training step changes is never kept.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .conditioning import Condition, Conditioner
from .data import Row, VideoDataset
from .rewards.face import FaceReference, FaceReward

ROWS_KEPT = 256
"""Rows kept in memory: about 8 MB each at 480x480x81, 2 GB in all."""


@dataclass(frozen=True)
class Prepared:
    """A row, ready to be trained on."""

    row: Row
    video_3THW: Tensor | None
    """The ground truth; None where the condition is kept and nobody needs it any more."""
    condition: Condition | None
    """None where it has to be computed anew, with gradient, on every use."""
    reference: FaceReference


class Preparer:
    """Prepares rows, keeping the last ones.

    Args:
        dataset: the rows and their videos.
        conditioner: makes conditions.
        reward: embeds the ground truth's faces.
        keeps_condition: False when a network that makes the condition is trained.
        device: where the results are wanted.
    """

    def __init__(
        self, dataset: VideoDataset, conditioner: Conditioner, reward: FaceReward, keeps_condition: bool, device: torch.device
    ) -> None:
        self.dataset, self.conditioner, self.reward = dataset, conditioner, reward
        self.keeps_condition, self.device = keeps_condition, device
        self._kept: OrderedDict[int, Prepared] = OrderedDict()

    def __call__(self, position: int) -> Prepared:
        """Return the row at `position` of the dataset, prepared, on the device."""
        if position not in self._kept:
            self._kept[position] = _to(self._prepare(position), torch.device("cpu"))
        self._kept.move_to_end(position)
        while len(self._kept) > ROWS_KEPT:
            self._kept.popitem(last=False)
        return _to(self._kept[position], self.device)

    @torch.no_grad()
    def condition(self, position: int) -> Condition:
        """Return the condition of a row with the networks as they are now, without gradient."""
        prepared = self(position)
        if prepared.condition is not None:
            return prepared.condition
        if prepared.video_3THW is None:
            raise ValueError(f"{prepared.row}: prepared with neither condition nor video")
        return self.conditioner(prepared.row.prompt, prepared.video_3THW)

    @torch.no_grad()
    def _prepare(self, position: int) -> Prepared:
        sample = self.dataset[position]
        video_3THW = sample.video_3THW.to(self.device)
        reference = self.reward.reference(video_3THW[None])
        if not self.keeps_condition:
            return Prepared(sample.row, video_3THW, None, reference)
        return Prepared(sample.row, None, self.conditioner(sample.row.prompt, video_3THW), reference)


def _to(prepared: Prepared, device: torch.device) -> Prepared:
    """Return the same on `device`."""
    condition, reference = prepared.condition, prepared.reference
    if condition is not None:
        image = condition.image_BCthw
        condition = replace(
            condition,
            context_BLD=condition.context_BLD.to(device),
            image_BCthw=None if image is None else image.to(device),
        )
    reference = FaceReference(reference.embeddings_BSE.to(device), reference.found_BS.to(device))
    video_3THW = None if prepared.video_3THW is None else prepared.video_3THW.to(device)
    return Prepared(prepared.row, video_3THW, condition, reference)
