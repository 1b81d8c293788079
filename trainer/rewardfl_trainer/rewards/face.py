"""The face identity reward: does every frame of the generated video show the person of the ground-truth video?

Score of a video = mean over its frames of the mean cosine similarity of the frame's face to the faces of the ground truth
(whose frame 0, the condition, is left out). A frame without a face counts with `missing_face_penalty`, so that hiding the
face never pays. Must not sample, decode or weigh.

Shapes: B videos, T frames, S reference frames, F faces, E embedding (512), H W pixels.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from rewardfl_trainer.compat import Conventions
from rewardfl_trainer.memory import Checkpointing

from .alignment import crop_faces, crop_faces_as_roll, similarity_to_template
from .base import Reference, Reward, RewardContext, RewardResult
from .conventions import CORRECT_FACES, FaceConventions
from .detection import FaceDetector, Faces
from .recognition import ChannelOrder, FaceRecogniser

FACES_PER_CALL = 16
"""Faces in one call of the recogniser; changes no result. Its activations (80 MB a face for glintr100) are those of one call."""

CHECKPOINTED = Checkpointing(enabled=True)
"""The backward pass embeds the faces of a call again instead of keeping their activations: memory does not grow with T."""


@dataclass(frozen=True)
class FaceReference(Reference):
    """The ground truth's faces. `embeddings_BSE` is L2-normalised, and zero where `found_BS` is False."""

    embeddings_BSE: Tensor
    found_BS: Tensor

    def mean_BE(self) -> Tensor:
        """Return the mean embedding of the found faces: its dot product with a face is that face's mean cosine similarity."""
        return self.embeddings_BSE.sum(dim=1) / self.found_BS.sum(dim=1, keepdim=True).clamp(min=1)


@dataclass(frozen=True)
class FaceResult(RewardResult):
    """Scores, and what was found where (pixels; nan where a frame has no face)."""

    boxes_BT4: Tensor
    keypoints_BT52: Tensor
    no_face_fraction: float
    """Part of the frames in which no face was found."""

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth logging, by name."""
        return {**super().metrics(), "no_face_fraction": self.no_face_fraction}


class FaceReward(Reward[FaceReference, FaceResult]):
    """Identity of the largest face. Detection carries no gradient; crop and embedding do."""

    reference_type = FaceReference

    def __init__(
        self,
        detector: FaceDetector,
        recogniser: FaceRecogniser,
        missing_face_penalty: float = 0.0,
        conventions: FaceConventions = CORRECT_FACES,
    ) -> None:
        super().__init__()
        self.detector, self.recogniser = detector, recogniser
        self.missing_face_penalty, self.conventions = missing_face_penalty, conventions
        self.freeze()

    @classmethod
    def create(cls, context: RewardContext, options: Mapping[str, Any]) -> Self:
        """Return the reward with antelopev2 from `reward_model_path`. It takes no options."""
        if options:
            raise ValueError("takes none; set training.face_channel_order and missing_face_penalty")
        parameters = context.parameters
        return cls.load(
            Path(parameters.reward_model_path),
            channel_order=parameters.face_channel_order,
            missing_face_penalty=parameters.missing_face_penalty,
            conventions=Conventions.of(parameters).faces,
            device=context.device,
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        channel_order: ChannelOrder = "rgb",
        missing_face_penalty: float = 0.0,
        conventions: FaceConventions = CORRECT_FACES,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Read both networks of antelopev2 from `folder`. Face scores need float32; float64 is for checks.

        Raises:
            RewardFLError: a file is missing or is not what it should be (exit code 66).
        """
        recogniser = FaceRecogniser.load(folder, conventions.forced_channel_order or channel_order)
        detector = FaceDetector.load(folder, conventions.detector)
        return cls(detector, recogniser, missing_face_penalty, conventions).to(device=device, dtype=dtype)

    @torch.no_grad()
    def reference(self, video_B3THW: Tensor) -> FaceReference:
        """Embed the ground truth's faces. Frame 0 counts only where no other frame has a face.

        Returns:
            `embeddings_BSE` with S = T. A video without any face has none found; every frame then scores the penalty.
        """
        embeddings_BTE, faces = self._embed(video_B3THW, self.conventions.reference_dtype)
        found_BT = faces.found_F.view(embeddings_BTE.shape[:2]).clone()
        if self.conventions.first_reference_frame == "never":
            found_BT[:, 0] = False
        found_BT[:, 0] &= ~found_BT[:, 1:].any(dim=1)
        return FaceReference(embeddings_BTE * found_BT.unsqueeze(-1), found_BT)

    def forward(self, video_B3THW: Tensor, reference: FaceReference) -> FaceResult:
        """Score videos in [-1, 1]. The score is connected to the video even where no frame has a face."""
        scores_BT, faces = self.frame_scores(video_B3THW, reference)
        found_BT = faces.found_F.view(scores_BT.shape)
        return FaceResult(
            score_B=self._mean(scores_BT, found_BT),
            frame_scores_BT=scores_BT.detach().masked_fill(~found_BT, torch.nan),
            boxes_BT4=faces.boxes_F4.view(*scores_BT.shape, 4),
            keypoints_BT52=faces.keypoints_F52.view(*scores_BT.shape, 5, 2),
            no_face_fraction=1 - float(found_BT.float().mean()),
        )

    def _mean(self, scores_BT: Tensor, found_BT: Tensor) -> Tensor:
        """Return the score of each video: the mean of its frames, or of those with a face where it has any."""
        if self.conventions.faceless == "penalty":
            return scores_BT.mean(dim=1)
        counted_BT = found_BT | ~found_BT.any(dim=1, keepdim=True)
        return (scores_BT * counted_BT).sum(dim=1) / counted_BT.sum(dim=1)

    def frame_scores(self, video_B3THW: Tensor, reference: FaceReference) -> tuple[Tensor, Faces]:
        """Return the score of every frame with its gradient, and the faces (frames of all videos in a row).

        The score of a video is the mean of these, so a long video can be scored, and differentiated, a few frames at a time.
        """
        embeddings_BTE, faces = self._embed(video_B3THW)
        scored_BT = faces.found_F.view(embeddings_BTE.shape[:2]) & reference.found_BS.any(dim=1, keepdim=True)
        mean_BE = reference.mean_BE().to(embeddings_BTE)
        cosine_BT = (embeddings_BTE * mean_BE.unsqueeze(1)).sum(dim=-1)
        scores_BT = torch.where(scored_BT, cosine_BT, self.missing_face_penalty)
        # A zero that depends on the video: backward works without any face, and a nan in the video is not hidden.
        return scores_BT + 0 * video_B3THW.sum(dim=(1, 3, 4), dtype=scores_BT.dtype).to(scores_BT.device), faces

    def find_faces(self, frames_F3HW: Tensor) -> Faces:
        """Return the largest face of each frame that can be aligned."""
        faces: Faces = self.detector(frames_F3HW)
        _, valid_F = similarity_to_template(faces.keypoints_F52)
        return Faces(faces.boxes_F4, faces.keypoints_F52, faces.scores_F, faces.found_F & valid_F)

    def _embed(self, video_B3THW: Tensor, rounding: torch.dtype | None = None) -> tuple[Tensor, Faces]:
        """Return embeddings_BTE, zero where a frame has no face, and the faces of all frames in a row."""
        batch, _, time = video_B3THW.shape[:3]
        frames_F3HW = video_B3THW.transpose(1, 2).flatten(0, 1).to(self.detector.anchor_centers_A2)
        with _full_precision(frames_F3HW.device.type):
            faces = self.find_faces(frames_F3HW.detach())
            where_F = faces.found_F.nonzero().squeeze(-1)
            matrices_F23, _ = similarity_to_template(faces.keypoints_F52[where_F])
            embeddings = [
                CHECKPOINTED.run(self._embed_faces, frames_F3HW, indices, matrices, rounding)
                for indices, matrices in zip(
                    torch.split(where_F, FACES_PER_CALL), torch.split(matrices_F23, FACES_PER_CALL), strict=True
                )
                if len(indices)
            ]
            if not embeddings:
                return frames_F3HW.new_zeros(batch, time, 1), faces
            found_FE = torch.cat(embeddings)
            embeddings_FE = found_FE.new_zeros(batch * time, found_FE.shape[-1]).index_copy(0, where_F, found_FE)
        return embeddings_FE.view(batch, time, -1), faces

    def _embed_faces(self, frames_F3HW: Tensor, indices_F: Tensor, matrices_F23: Tensor, rounding: torch.dtype | None) -> Tensor:
        """Return the embeddings of the faces in the frames at `indices_F`."""
        crop = crop_faces_as_roll if self.conventions.whole_frame_grid else crop_faces
        return self._normalised(self.recogniser.embed(crop(frames_F3HW[indices_F], matrices_F23)), rounding)

    @staticmethod
    def _normalised(embeddings_FE: Tensor, rounding: torch.dtype | None) -> Tensor:
        """Return the embeddings at length 1; where a convention asks for it, computed in a coarser type, length and all."""
        if rounding is None:
            return functional.normalize(embeddings_FE, dim=-1)
        rounded_FE = embeddings_FE.to(rounding)
        normalised_FE: Tensor = rounded_FE / torch.linalg.vector_norm(rounded_FE, dim=-1, keepdim=True)
        return normalised_FE.to(embeddings_FE)


def _full_precision(device_type: str) -> AbstractContextManager[object]:
    """Return what keeps a caller's autocast away from faces; shapes without data (`rewardfl estimate`) know none."""
    known = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if known else nullcontext()
