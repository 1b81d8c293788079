"""How faces are fed to the networks and counted: insightface's way, which is right, and ROLL's, to compare with it."""

from dataclasses import dataclass
from typing import Literal

import torch

HALF_RANGE = 127.5
"""Half of the range of a pixel's value: [-1, 1] times this is value - 127.5."""
DETECTOR_STD = 128.0


@dataclass(frozen=True)
class DetectorInput:
    """How a frame in [-1, 1] becomes the detector's input, and how the boxes found are compared."""

    scale: float
    padding: float
    """Value right of and below the letterboxed frame, before scaling: -1 is black, 0 mid-grey."""
    antialias: bool
    inclusive_pixel: float
    """Added to a box's width and height where boxes are compared: insightface counts the last pixel as inside."""


@dataclass(frozen=True)
class FaceConventions:
    """The choices of the face reward."""

    detector: DetectorInput
    whole_frame_grid: bool
    """Crop on ROLL's grid: a transform in units of width and height, sampled on corners, mid-grey outside the frame."""
    faceless: Literal["penalty", "left_out"]
    """What a generated frame without a face does to the mean: counts with the penalty, or leaves it."""
    first_reference_frame: Literal["fallback", "never"]
    """Whether frame 0 of the ground truth counts where no other frame has a face."""
    reference_dtype: torch.dtype | None
    """Type in which the ground truth's embeddings are kept and normalised; None: the network's own."""
    forced_channel_order: Literal["bgr"] | None
    """Channel order of the recogniser that replaces `face_channel_order`."""


CORRECT_FACES = FaceConventions(
    detector=DetectorInput(scale=HALF_RANGE / DETECTOR_STD, padding=-1.0, antialias=False, inclusive_pixel=1.0),
    whole_frame_grid=False,
    faceless="penalty",
    first_reference_frame="fallback",
    reference_dtype=None,
    forced_channel_order=None,
)

ROLL_FACES = FaceConventions(
    detector=DetectorInput(scale=1.0, padding=0.0, antialias=True, inclusive_pixel=0.0),
    whole_frame_grid=True,
    faceless="left_out",
    first_reference_frame="never",
    reference_dtype=torch.bfloat16,
    forced_channel_order="bgr",
)
