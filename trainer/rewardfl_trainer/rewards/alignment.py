"""Cuts a face out of a frame as ArcFace was trained to see it: 112x112, five points at fixed places.

The transform carries no gradient, the pixels do. Only the 112x112 region is sampled, not the whole frame.

Shapes: F faces, H W pixels, 5 points x y.
"""

import torch
from torch import Tensor
from torch.nn import functional

CROP_SIZE = 112

ARCFACE_TEMPLATE_52 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
"""Where left eye, right eye, nose and mouth corners lie in the crop (insightface, `utils/face_align.py`)."""

MIN_POINT_VARIANCE = 1e-6
"""Square pixels. Five points closer together than this define no transform."""


def similarity_to_template(points_F52: Tensor) -> tuple[Tensor, Tensor]:
    """Return the similarity transforms crop = M @ (x, y, 1) that bring the points closest to the template.

    The least-squares solution of Umeyama (1991) without reflection. In the plane it has a closed form: with points as complex
    numbers about their means, rotation and scale together are sum(conj(p) * q) / sum(|p|^2).

    Returns:
        matrices_F23 in the points' precision, and valid_F: False where the points coincide or are not finite.
    """
    template_52 = points_F52.new_tensor(ARCFACE_TEMPLATE_52)
    mean_F12, template_mean_2 = points_F52.mean(dim=1, keepdim=True), template_52.mean(dim=0)
    p_F52, q_52 = points_F52 - mean_F12, template_52 - template_mean_2
    variance_F = p_F52.square().sum(dim=(1, 2))
    valid_F = variance_F > MIN_POINT_VARIANCE
    cosine_F = (p_F52 * q_52).sum(dim=(1, 2)) / variance_F
    sine_F = (p_F52[..., 0] * q_52[:, 1] - p_F52[..., 1] * q_52[:, 0]).sum(dim=1) / variance_F
    rotation_F22 = torch.stack((cosine_F, -sine_F, sine_F, cosine_F), dim=-1).view(-1, 2, 2)
    shift_F2 = template_mean_2 - (rotation_F22 @ mean_F12.transpose(1, 2)).squeeze(-1)
    return torch.cat((rotation_F22, shift_F2.unsqueeze(-1)), dim=-1), valid_F & variance_F.isfinite()


def invert_similarity(matrices_F23: Tensor) -> Tensor:
    """Return the inverse transforms (crop to frame), F 2 3."""
    rotation_F22, shift_F21 = matrices_F23[..., :2], matrices_F23[..., 2:]
    scale_square_F11 = rotation_F22[:, :1, :].square().sum(dim=-1, keepdim=True)
    inverse_F22 = rotation_F22.transpose(1, 2) / scale_square_F11
    return torch.cat((inverse_F22, -inverse_F22 @ shift_F21), dim=-1)


def crop_faces(frames_F3HW: Tensor, matrices_F23: Tensor) -> Tensor:
    """Sample the 112x112 crop of each frame bilinearly, black outside the frame; differentiable in the frames.

    Pixel centres have integer coordinates, as in cv2.warpAffine and insightface's `norm_crop`. `frames_F3HW` is in [-1, 1].
    """
    height, width = frames_F3HW.shape[-2:]
    points_FP2 = _crop_points(CROP_SIZE, CROP_SIZE, matrices_F23) @ invert_similarity(matrices_F23).transpose(1, 2)
    size_2 = points_FP2.new_tensor((width, height))
    grid_FP2 = (2 * points_FP2 + 1) / size_2 - 1
    grid = grid_FP2.view(-1, CROP_SIZE, CROP_SIZE, 2).to(frames_F3HW.dtype)
    # grid_sample pads with 0: shifted by one, 0 is black.
    return functional.grid_sample(frames_F3HW + 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) - 1


def crop_faces_as_roll(frames_F3HW: Tensor, matrices_F23: Tensor) -> Tensor:
    """Sample the crop as ROLL does: the upper left 112x112 of the whole warped frame, which is not computed here.

    ROLL writes the transform in units of width and height and samples with `align_corners`: both ends are a part in `width`
    off. Outside the frame it takes mid-grey. What is left of a frame smaller than the crop is stretched to it.
    """
    height, width = frames_F3HW.shape[-2:]
    rows, columns = min(CROP_SIZE, height), min(CROP_SIZE, width)
    corners_2 = matrices_F23.new_tensor((width / (width - 1), height / (height - 1)))
    crop_points_P3 = _crop_points(rows, columns, matrices_F23)
    crop_points_P3[:, :2] *= corners_2
    points_FP2 = crop_points_P3 @ invert_similarity(matrices_F23).transpose(1, 2)
    grid_FP2 = 2 * points_FP2 / points_FP2.new_tensor((width, height)) - 1
    grid = grid_FP2.view(-1, rows, columns, 2).to(frames_F3HW.dtype)
    crops = functional.grid_sample(frames_F3HW, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    if (rows, columns) == (CROP_SIZE, CROP_SIZE):
        return crops
    return functional.interpolate(crops, (CROP_SIZE, CROP_SIZE), mode="bilinear", antialias=True)


def _crop_points(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return the homogeneous pixel coordinates (x, y, 1) of a crop, row by row."""
    y, x = torch.meshgrid(
        *(torch.arange(count, dtype=like.dtype, device=like.device) for count in (rows, columns)), indexing="ij"
    )
    return torch.stack((x, y, torch.ones_like(x)), dim=-1).reshape(-1, 3)
