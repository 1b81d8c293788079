"""Aligning faces: the closed form against scikit-image, the region warp against warping the whole frame."""

import numpy as np
import torch
from skimage import transform
from torch import Tensor
from torch.nn import functional

from rewardfl_trainer.rewards.alignment import (
    ARCFACE_TEMPLATE_52,
    CROP_SIZE,
    crop_faces,
    invert_similarity,
    similarity_to_template,
)
from tests.unit import insightface_recipe


def face_points(count: int, seed: int = 0) -> Tensor:
    """The template turned, scaled and moved by anything, and somewhat distorted."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(count, generator=generator, dtype=torch.float64) * 6.3
    scale = torch.rand(count, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    turn = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), dim=-1).view(count, 2, 2) * scale[:, None, None]
    template = torch.tensor(ARCFACE_TEMPLATE_52, dtype=torch.float64) - CROP_SIZE / 2
    noise = torch.randn(count, 5, 2, generator=generator, dtype=torch.float64)
    shift = torch.rand(count, 1, 2, generator=generator, dtype=torch.float64) * 60 + 20
    return template @ turn.transpose(1, 2) + noise + shift


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64) * 2 - 1


def test_transform_equals_umeyama_of_scikit_image() -> None:
    points = face_points(50)

    matrices, valid = similarity_to_template(points)

    assert valid.all()
    for matrix, five in zip(matrices, points, strict=True):
        expected = transform.SimilarityTransform.from_estimate(five.numpy(), np.array(ARCFACE_TEMPLATE_52)).params[:2]
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-10)


def test_inverse_transform_undoes_the_transform() -> None:
    matrices, _ = similarity_to_template(face_points(5))

    inverse = invert_similarity(matrices)

    identity = matrices[..., :2] @ inverse[..., :2]
    torch.testing.assert_close(identity, torch.eye(2, dtype=torch.float64).expand(5, 2, 2))
    torch.testing.assert_close(
        matrices[..., :2] @ inverse[..., 2:] + matrices[..., 2:], torch.zeros(5, 2, 1, dtype=torch.float64)
    )


def test_crop_equals_the_crop_of_norm_crop() -> None:
    points, frame = face_points(8), picture(90, 120)
    matrices, _ = similarity_to_template(points)

    crops = crop_faces(frame.expand(8, -1, -1, -1), matrices)

    values = (frame[0].permute(1, 2, 0).numpy() + 1) * 127.5
    for crop, five in zip(crops, points, strict=True):
        expected = insightface_recipe.align(values, five.numpy())
        np.testing.assert_allclose((crop.permute(1, 2, 0).numpy() + 1) * 127.5, expected, atol=1e-6)


def test_region_warp_equals_whole_frame_warp_then_crop() -> None:
    height, width = 150, 180
    frame, (matrix, *_) = picture(height, width), similarity_to_template(face_points(1))

    region = crop_faces(frame, matrix)

    pixels_to_unit = torch.tensor(
        [[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]], dtype=torch.float64
    )
    square = torch.cat((matrix[0], torch.tensor([[0, 0, 1]], dtype=torch.float64)))
    theta = (pixels_to_unit @ square.inverse() @ pixels_to_unit.inverse())[None, :2]
    grid = functional.affine_grid(theta, list(frame.shape), align_corners=False)
    whole = functional.grid_sample(frame + 1, grid, align_corners=False) - 1
    torch.testing.assert_close(region, whole[..., :CROP_SIZE, :CROP_SIZE])


def test_points_on_the_template_leave_the_pixels_as_they_are() -> None:
    frame = picture(CROP_SIZE, CROP_SIZE)
    matrix, _ = similarity_to_template(torch.tensor([ARCFACE_TEMPLATE_52], dtype=torch.float64))

    torch.testing.assert_close(crop_faces(frame, matrix), frame)


def test_outside_the_frame_the_crop_is_black() -> None:
    far_away = torch.tensor([ARCFACE_TEMPLATE_52]) + 1000
    matrix, valid = similarity_to_template(far_away)

    crop = crop_faces(torch.ones(1, 3, 64, 64), matrix)

    assert valid.all()
    assert (crop == -1).all()


def test_points_that_coincide_or_are_nan_are_not_valid() -> None:
    points = torch.stack((torch.full((5, 2), 7.0), torch.full((5, 2), torch.nan), torch.tensor(ARCFACE_TEMPLATE_52)))

    _, valid = similarity_to_template(points)

    assert valid.tolist() == [False, False, True]


def test_crop_gradient_agrees_with_finite_differences() -> None:
    frame = picture(12, 14).requires_grad_()
    matrix, _ = similarity_to_template(face_points(1) * 0.1)
    weight = torch.randn(1, 3, CROP_SIZE, CROP_SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda pixels: (crop_faces(pixels, matrix) * weight).sum(), (frame,))
