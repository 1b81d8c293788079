"""Spoils frames by a known amount: 0 leaves them, 1 leaves little to recognise.

The recogniser is taught with these that a worse face is less similar; the tests ask it. Shapes: F frames, H W pixels.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_PIXELS: Final = 4.0
"""Deviation of the Gaussian at severity 1."""
WARP_PIXELS: Final = 6.0
NOISE_DEVIATION: Final = 0.6
TINT: Final = 0.7
KERNEL_RADIUS: Final = 9


def blur(frames_F3HW: Tensor, severity_F: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur; `generator` is not used."""
    offsets = torch.arange(-KERNEL_RADIUS, KERNEL_RADIUS + 1.0)
    sigma = (severity_F * BLUR_PIXELS).clamp(min=1e-2)
    kernel = torch.exp(-0.5 * (offsets[None] / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(frames_F3HW.flatten(0, 1)[None], (KERNEL_RADIUS,) * 4, mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel[:, None, None], groups=len(kernel)), kernel[:, None, :, None], groups=len(kernel))
    return flat[0].view_as(frames_F3HW)


def warp(frames_F3HW: Tensor, severity_F: Tensor, generator: torch.Generator) -> Tensor:
    """A smooth random displacement of the pixels."""
    count, _, height, width = frames_F3HW.shape
    coarse = torch.randn(count, 2, 6, 6, generator=generator) * severity_F[:, None, None, None] * WARP_PIXELS
    shift = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    identity = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), [count, 3, height, width], align_corners=False)
    grid = identity + shift.permute(0, 2, 3, 1) * 2 / width
    return F.grid_sample(frames_F3HW, grid, padding_mode="border", align_corners=False)


def noise(frames_F3HW: Tensor, severity_F: Tensor, generator: torch.Generator) -> Tensor:
    """Noise, half of it fine and half of it blotchy."""
    fine = torch.randn(frames_F3HW.shape, generator=generator)
    blotches = F.interpolate(torch.randn(len(frames_F3HW), 3, 8, 8, generator=generator), frames_F3HW.shape[-2:], mode="bilinear")
    return (frames_F3HW + severity_F[:, None, None, None] * NOISE_DEVIATION * (fine + 2 * blotches) / 2).clamp(-1, 1)


def tint(frames_F3HW: Tensor, severity_F: Tensor, generator: torch.Generator) -> Tensor:
    """A random shift of the colours."""
    shift = (torch.rand(len(frames_F3HW), 3, 1, 1, generator=generator) * 2 - 1) * TINT
    return (frames_F3HW + shift * severity_F[:, None, None, None]).clamp(-1, 1)
