"""Finds the largest face of each frame with SCRFD (insightface's scrfd_10g_bnkps.onnx). Carries no gradient.

The recipe is insightface's (`python-package/insightface/model_zoo/retinaface.py`): letterbox to 640x640 with black to the
right and below, RGB, (value - 127.5) / 128, threshold 0.5, non-maximum suppression at 0.4 counting pixels inclusively.

Shapes: F frames, H W pixels, A anchors of all strides, 4 box edges x1 y1 x2 y2, 5 points (eyes, nose, mouth corners) x y.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torchvision.ops
from torch import Tensor, nn
from torch.nn import functional

from .conventions import CORRECT_FACES, DetectorInput
from .onnx_network import find_model, load_network, quiet

FILE_NAME = "scrfd_10g_bnkps.onnx"
INPUT_SIZE = 640
STRIDES = (8, 16, 32)
ANCHORS_PER_POSITION = 2
NUM_POINTS = 5
OUTPUT_CHANNELS = (1, 4, 2 * NUM_POINTS)
"""Scores of every stride, then boxes of every stride, then points of every stride."""

SCORE_THRESHOLD = 0.5
NMS_THRESHOLD = 0.4
FRAMES_PER_CALL = 4
"""Frames in one call of the network; bounds its memory, changes no result."""


@dataclass(frozen=True)
class Faces:
    """The largest face of each frame, in pixels of the frame. Where none was found: nan, and False in `found_F`."""

    boxes_F4: Tensor
    keypoints_F52: Tensor
    scores_F: Tensor
    found_F: Tensor


class FaceDetector(nn.Module):
    """SCRFD, batched. Works with exports whose outputs have a batch axis and with those that have none."""

    anchor_centers_A2: Tensor
    anchor_strides_A1: Tensor

    def __init__(self, network: nn.Module, recipe: DetectorInput = CORRECT_FACES.detector) -> None:
        super().__init__()
        self.network, self.recipe = network, recipe
        centers_A2, strides_A1 = anchors()
        self.register_buffer("anchor_centers_A2", centers_A2, persistent=False)
        self.register_buffer("anchor_strides_A1", strides_A1, persistent=False)

    @classmethod
    def load(cls, folder: Path, recipe: DetectorInput = CORRECT_FACES.detector) -> Self:
        """Read the detector of `folder`.

        Raises:
            RewardFLError: the file is missing or is not a detector with nine outputs (exit code 66).
        """
        return cls(load_network(find_model(folder, FILE_NAME), len(STRIDES) * len(OUTPUT_CHANNELS)), recipe)

    @torch.no_grad()
    def forward(self, frames_F3HW: Tensor) -> Faces:
        """Find the largest face of each frame of RGB in [-1, 1]."""
        parts = [self._detect(frames) for frames in torch.split(frames_F3HW, FRAMES_PER_CALL)]
        return Faces(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _detect(self, frames_F3HW: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Detect in as many frames as fit one call; returns the fields of `Faces`."""
        frames_F3HW = frames_F3HW.to(self.anchor_centers_A2)
        letterboxed_F3SS, scale = letterbox(frames_F3HW, self.recipe)
        scores_FA, boxes_FA4, points_FA52 = self.decode(letterboxed_F3SS)
        return largest_faces(scores_FA, boxes_FA4 / scale, points_FA52 / scale, self.recipe.inclusive_pixel)

    def decode(self, inputs_F3SS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run the network; return scores_FA, boxes_FA4 and points_FA52 of every anchor in pixels of its input.

        The network is mapped over the frames, each as a batch of one. That is right for every export: one without a batch axis
        ([12800, 1]) mixes up the frames of a real batch, in an order that differs between versions of the exporter.
        """
        with quiet():
            outputs = torch.vmap(self.network)(inputs_F3SS.unsqueeze(1))
        flat = [output.reshape(len(inputs_F3SS), -1, output.shape[-1]) for output in outputs]
        scores_FA1, distances_FA4, offsets_FA10 = (
            torch.cat(flat[start : start + len(STRIDES)], dim=1) for start in range(0, len(flat), len(STRIDES))
        )
        distances_FA4 = distances_FA4 * self.anchor_strides_A1
        boxes_FA4 = torch.cat(
            (self.anchor_centers_A2 - distances_FA4[..., :2], self.anchor_centers_A2 + distances_FA4[..., 2:]), dim=-1
        )
        offsets_FA52 = torch.unflatten(offsets_FA10 * self.anchor_strides_A1, -1, (NUM_POINTS, 2))
        return scores_FA1.squeeze(-1), boxes_FA4, self.anchor_centers_A2.unsqueeze(1) + offsets_FA52


def anchors() -> tuple[Tensor, Tensor]:
    """Return centers_A2 (x, y in input pixels) and strides_A1 of all anchors, in the order of the network's outputs."""
    centers, strides = [], []
    for stride in STRIDES:
        steps = torch.arange(INPUT_SIZE // stride) * float(stride)
        y, x = torch.meshgrid(steps, steps, indexing="ij")
        centers_P2 = torch.stack((x, y), dim=-1).reshape(-1, 2).repeat_interleave(ANCHORS_PER_POSITION, dim=0)
        centers.append(centers_P2)
        strides.append(torch.full((len(centers_P2), 1), float(stride)))
    return torch.cat(centers), torch.cat(strides)


def letterbox(frames_F3HW: Tensor, recipe: DetectorInput = CORRECT_FACES.detector) -> tuple[Tensor, float]:
    """Scale frames in [-1, 1] to fit the network's input, top left on black; return that input, and the scale."""
    height, width = frames_F3HW.shape[-2:]
    ratio = height / width
    new_height, new_width = (INPUT_SIZE, int(INPUT_SIZE / ratio)) if ratio > 1 else (int(INPUT_SIZE * ratio), INPUT_SIZE)
    new_height, new_width = max(1, new_height), max(1, new_width)
    size = (new_height, new_width)
    resized = functional.interpolate(frames_F3HW.clamp(-1, 1), size, mode="bilinear", antialias=recipe.antialias)
    padded = functional.pad(resized, (0, INPUT_SIZE - new_width, 0, INPUT_SIZE - new_height), value=recipe.padding)
    return padded * recipe.scale, new_height / height


def largest_faces(
    scores_FA: Tensor, boxes_FA4: Tensor, points_FA52: Tensor, inclusive_pixel: float = CORRECT_FACES.detector.inclusive_pixel
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Suppress overlapping boxes and return the fields of `Faces`: the largest remaining box of each frame."""
    frame_K, anchor_K = (scores_FA >= SCORE_THRESHOLD).nonzero(as_tuple=True)
    scores_K, boxes_K4 = scores_FA[frame_K, anchor_K], boxes_FA4[frame_K, anchor_K]
    inclusive_K4 = boxes_K4 + boxes_K4.new_tensor([0, 0, inclusive_pixel, inclusive_pixel])
    kept = torchvision.ops.batched_nms(inclusive_K4.double(), scores_K.double(), frame_K, NMS_THRESHOLD)
    frame_K, anchor_K, boxes_K4 = frame_K[kept], anchor_K[kept], boxes_K4[kept]
    area_K = (boxes_K4[:, 2] - boxes_K4[:, 0]) * (boxes_K4[:, 3] - boxes_K4[:, 1])
    area_FA = torch.full_like(scores_FA, -torch.inf)
    area_FA[frame_K, anchor_K] = area_K
    best_area_F, best_F = area_FA.max(dim=1)
    found_F = best_area_F > -torch.inf
    frames_F = torch.arange(len(scores_FA), device=scores_FA.device)
    nothing = scores_FA.new_tensor(torch.nan)
    return (
        torch.where(found_F[:, None], boxes_FA4[frames_F, best_F], nothing),
        torch.where(found_F[:, None, None], points_FA52[frames_F, best_F], nothing),
        torch.where(found_F, scores_FA[frames_F, best_F], nothing),
        found_F,
    )
