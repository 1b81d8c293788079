"""ROLL's face score and loss, written from their description: one frame at a time, the whole frame warped, every rounding kept.

Frames are 3 H W, RGB in [-1, 1]; the networks are run by onnxruntime.
"""

from pathlib import Path

import numpy as np
import torch
import torchvision
from skimage import transform
from torch import Tensor
from torch.nn import functional

from tests.unit.insightface_recipe import TEMPLATE, Array, run, session

SIDE = 640
CROP = 112


def detect(network: object, frame_3HW: Tensor) -> Array | None:
    """Return the five points of the largest face."""
    height, width = frame_3HW.shape[-2:]
    ratio = height / width
    new_height, new_width = (SIDE, int(SIDE / ratio)) if ratio > 1 else (int(SIDE * ratio), SIDE)
    scale = new_height / height
    canvas = torch.zeros(3, SIDE, SIDE)
    canvas[:, :new_height, :new_width] = torchvision.transforms.functional.resize(
        frame_3HW, [new_height, new_width], antialias=True
    )
    outputs = run(network, canvas[None].double().numpy())  # type: ignore[arg-type]
    boxes, points = [], []
    for level, stride in enumerate((8, 16, 32)):
        score, distance, offset = (outputs[level + 3 * kind].reshape(-1, size) for kind, size in enumerate((1, 4, 10)))
        for anchor in np.flatnonzero(score[:, 0] >= 0.5):
            y, x = divmod(anchor // 2, SIDE // stride)
            centre = np.array([x, y]) * float(stride)
            low, high = centre - distance[anchor, :2] * stride, centre + distance[anchor, 2:] * stride
            boxes.append([*low / scale, *high / scale, score[anchor, 0]])
            points.append((centre + offset[anchor].reshape(5, 2) * stride) / scale)
    if not boxes:
        return None
    found = torch.tensor(np.array(boxes))
    keep = torchvision.ops.nms(found[:, :4], found[:, 4], 0.4).tolist()
    largest = max(keep, key=lambda index: float((found[index, 2] - found[index, 0]) * (found[index, 3] - found[index, 1])))
    return points[largest]


def crop(frame_3HW: Tensor, points: Array) -> Tensor:
    """Warp the whole frame and cut its upper left corner; what is smaller than the corner is enlarged."""
    height, width = frame_3HW.shape[-2:]
    similarity = torch.from_numpy(transform.SimilarityTransform.from_estimate(points, TEMPLATE).params).float()
    units = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])
    theta = torch.inverse(units @ similarity @ torch.inverse(units))[:2]
    grid = functional.affine_grid(theta[None], [1, 3, height, width], align_corners=True)
    warped = functional.grid_sample(frame_3HW[None], grid, align_corners=True)
    return torchvision.transforms.functional.resize(warped[..., :CROP, :CROP], [CROP, CROP], antialias=True)


def embeddings(folder: Path, frames_T3HW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the raw embedding of each frame's largest face, zero without one, and whether there is one."""
    detector, recogniser = session(folder / "scrfd_10g_bnkps.onnx"), session(folder / "glintr100.onnx")
    rows, found = [], []
    for frame in frames_T3HW:
        points = detect(detector, frame.float())
        found.append(points is not None)
        if points is None:
            rows.append(torch.zeros(512))
        else:
            blue_first = crop(frame.float(), points)[:, [2, 1, 0]]
            rows.append(torch.from_numpy(run(recogniser, blue_first.double().numpy())[0][0]).float())
    return torch.stack(rows), torch.tensor(found)


def score(folder: Path, generated_T3HW: Tensor, truth_T3HW: Tensor) -> Tensor:
    """Return the face score of one video."""
    generated, found = embeddings(folder, generated_T3HW)
    truth, counted = embeddings(folder, truth_T3HW)
    counted[0] = False
    cosine = functional.cosine_similarity(generated[:, None], truth.bfloat16()[None], dim=-1)
    return cosine[found][:, counted].mean()


def loss(face_score: Tensor, kl: Tensor) -> Tensor:
    """Return the loss, rounded to bf16 after each operation as 0-dimensional tensors are."""
    total = -(face_score.bfloat16() - 0.54) / 0.16 * 0.1
    total += kl
    return total
