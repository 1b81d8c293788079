"""The temporal consistency reward: does the generated video move as much as the real one, and as smoothly?

Raising the face score can be bought with flicker (each frame pushed towards the face on its own) or with a frozen picture.
Both show in how much the picture changes from frame to frame: of differences of order 1 (motion) and 2 (flicker, jitter) the
root mean square sigma is compared with that of the real video, as SSIM compares contrast (Wang, Bovik, Sheikh, Simoncelli:
"Image quality assessment: from error visibility to structural similarity", 2004, eq. 9):

    score = product over both orders of (2 sigma sigma_real + C) / (sigma^2 + sigma_real^2 + C)

It is 1 where both agree, and falls to 0 for too much change and for too little. What moves, and when, is free. Pixels are
averaged over small cells first, so that film grain, which the VAE does not reproduce, is no motion. No network is needed.

Shapes: B videos, T frames, H W pixels, h w cells, K orders.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Reference, Reward, RewardResult

ORDERS = (1, 2)
"""Differences between neighbouring frames, and differences between those."""

GREY_LEVEL = 2 / 255
"""Of the 256 levels in [-1, 1]. Changes below one are not seen: C is its square."""

SMALLEST_SQUARE = 1e-10
"""Keeps the square root's slope finite where nothing moves; far below C."""


@dataclass(frozen=True)
class TemporalReference(Reference):
    """Mean square of the real video's differences of each order."""

    energy_BK: Tensor


@dataclass(frozen=True)
class TemporalResult(RewardResult):
    """Scores, and how much the videos change compared with the real ones: 1 as much, 0 not at all."""

    motion_ratio: float
    flicker_ratio: float

    def metrics(self) -> dict[str, float]:
        """Return the numbers worth logging, by name."""
        return {**super().metrics(), "motion_ratio": self.motion_ratio, "flicker_ratio": self.flicker_ratio}


class TemporalConsistency(Reward[TemporalReference, TemporalResult]):
    """Compares the amount of change of two videos.

    Args:
        cell_pixels: edge of the cells that pixels are averaged over; 4 leaves flicker and drops grain.

    Raises:
        ValueError: `cell_pixels` does not divide the multiples of 16 that videos are sized in.
    """

    reference_type = TemporalReference

    def __init__(self, cell_pixels: int = 4) -> None:
        super().__init__()
        if cell_pixels not in (1, 2, 4, 8, 16):
            raise ValueError(f"cell_pixels={cell_pixels!r}: use 1, 2, 4, 8 or 16")
        self.cell_pixels = cell_pixels

    @torch.no_grad()
    def reference(self, video_B3THW: Tensor) -> TemporalReference:
        """Measure the real videos."""
        squares = self._squares(video_B3THW)
        return TemporalReference(torch.stack([square_BT.mean(dim=1) for square_BT in squares], dim=1))

    def forward(self, video_B3THW: Tensor, reference: TemporalReference) -> TemporalResult:
        """Score videos in [-1, 1] of at least three frames. A frame's score is the flicker around it; the ends have none."""
        motion_BT, flicker_BT = self._squares(video_B3THW)
        energy_BK = torch.stack([motion_BT.mean(dim=1), flicker_BT.mean(dim=1)], dim=1)
        real_BK = reference.energy_BK.to(energy_BK)
        frames_BT = _agreement(flicker_BT.detach(), real_BK[:, 1:])
        ratios_K = (_sigma(energy_BK.detach() + GREY_LEVEL**2) / _sigma(real_BK + GREY_LEVEL**2)).mean(dim=0).tolist()
        return TemporalResult(
            score_B=_agreement(energy_BK, real_BK).prod(dim=1),
            frame_scores_BT=torch.nn.functional.pad(frames_BT, (1, 1), value=math.nan),
            motion_ratio=ratios_K[0],
            flicker_ratio=ratios_K[1],
        )

    def _squares(self, video_B3THW: Tensor) -> list[Tensor]:
        """Return the mean square of each frame's differences, B (T - order), for each order."""
        if video_B3THW.shape[2] <= max(ORDERS):
            raise ValueError(f"{video_B3THW.shape[2]} frames: temporal consistency needs at least {max(ORDERS) + 1}")
        cells_B3Thw = self._cells(video_B3THW)
        return [cells_B3Thw.diff(n=order, dim=2).square().mean(dim=(1, 3, 4)) for order in ORDERS]

    def _cells(self, video_B3THW: Tensor) -> Tensor:
        """Average over cells, in fp32 or wider. A mean of views: nothing of the video's size is kept for the backward pass."""
        edge = self.cell_pixels
        wide = torch.promote_types(video_B3THW.dtype, torch.float32)
        batch, channels, frames, height, width = video_B3THW.shape
        cells = video_B3THW.reshape(batch, channels, frames, height // edge, edge, width // edge, edge)
        return cells.mean(dim=(-3, -1), dtype=wide)


def _sigma(energy: Tensor) -> Tensor:
    """Return the root of a mean square."""
    return (energy + SMALLEST_SQUARE).sqrt()


def _agreement(energy: Tensor, real_energy: Tensor) -> Tensor:
    """Return SSIM's contrast term of two mean squares: 1 where they agree, towards 0 where one is much larger."""
    sigma, real_sigma = _sigma(energy), _sigma(real_energy)
    return (2 * sigma * real_sigma + GREY_LEVEL**2) / (sigma.square() + real_sigma.square() + GREY_LEVEL**2)
