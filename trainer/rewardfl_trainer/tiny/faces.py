"""Renders clips of synthetic people: one public-domain portrait, warped and coloured into any number of identities.

Everything is a function of a seeded generator. A face lives in *face units*: the origin is between the eyes and the mouth,
one unit is about the half width of the head. The module knows nothing of networks.

Shapes: B clips, T frames, H W pixels, K bumps, 5 points (eyes, nose, mouth corners; left in the picture first).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rewardfl_trainer.tiny.spec import FRAME_PIXELS, NUM_FRAMES

PICTURES: Final = Path(__file__).parent / "weights"
BACKGROUNDS: Final = {"coffee": "a cup of coffee", "rocket": "a rocket", "chelsea": "a cat", "hubble": "the stars"}
MOTIONS: Final = (
    "moves to the left",
    "moves to the right",
    "moves up",
    "moves down",
    "comes closer",
    "moves away",
    "tilts the head to the left",
    "tilts the head to the right",
)
POINTS_5xy: Final = ((-0.26, -0.124), (0.224, -0.102), (-0.022, 0.178), (-0.244, 0.316), (0.171, 0.333))
"""Eyes, nose tip and mouth corners of the portrait, in face units, read off the picture."""
BOX_xyxy: Final = (-0.50, -0.38, 0.46, 0.73)
"""Forehead to chin, ear to ear, in face units."""
PORTRAIT_HALF_UNITS: Final = 110 / 90
"""Half the side of the stored portrait, in face units."""
BUMP_CENTRES_Kxy: Final = (
    (-0.26, -0.12),
    (0.22, -0.10),
    (-0.02, 0.16),
    (-0.04, 0.34),
    (-0.45, 0.25),
    (0.42, 0.25),
    (0.0, 0.65),
    (0.0, -0.5),
)
BUMP_RADIUS: Final = 0.28
BUMP_SHIFT: Final = 0.075
MOTION_PIXELS: Final = 5.0
MOTION_SCALE: Final = 0.16
MOTION_TILT: Final = 0.18
LIGHT_CHANGE: Final = 0.08


@dataclass
class Identities:
    """What makes people differ; every field starts with the dimension B."""

    shift_BK2: Tensor
    skin_B3: Tensor
    hair_B3: Tensor
    aspect_B: Tensor

    def take(self, index_B: Tensor) -> "Identities":
        """The people at `index_B`, in that order."""
        return Identities(*(getattr(self, field.name)[index_B] for field in fields(self)))


@dataclass
class Clips:
    """Rendered clips with their ground truth: pixels in [-1, 1], points and boxes in pixels."""

    video_B3THW: Tensor
    points_BT5xy: Tensor
    box_BTxyxy: Tensor
    motion_B: Tensor
    background_B: Tensor


def identities(count: int, generator: torch.Generator) -> Identities:
    """Draw `count` people."""
    shift = (torch.rand(count, len(BUMP_CENTRES_Kxy), 2, generator=generator) * 2 - 1) * BUMP_SHIFT
    skin = 0.55 + 0.75 * torch.rand(count, 3, generator=generator)
    hair = 0.4 + 1.0 * torch.rand(count, 3, generator=generator)
    aspect = 0.9 + 0.2 * torch.rand(count, generator=generator)
    return Identities(shift, skin, hair, aspect)


def portrait_3HW() -> Tensor:
    """The stored portrait in [0, 1]."""
    return _picture("astronaut.png")


def prompt(motion: int, background: int) -> str:
    """The caption of a clip."""
    return f"a person {MOTIONS[motion]} in front of {list(BACKGROUNDS.values())[background]}"


def render(
    people: Identities,
    generator: torch.Generator,
    motion_B: Tensor | None = None,
    background_B: Tensor | None = None,
    frames: int = NUM_FRAMES,
) -> Clips:
    """Render the first `frames` of one clip for each of the people; motion and background are drawn unless given."""
    count = len(people.aspect_B)
    motion = _draw(len(MOTIONS), count, generator) if motion_B is None else motion_B
    background = _draw(len(BACKGROUNDS), count, generator) if background_B is None else background_B
    centre, scale, tilt, light = (value[:, :frames] for value in _trajectory(motion, count, generator))
    pixels = _pixel_grid()
    local = _to_face(pixels, centre, scale, tilt, people.aspect_B)
    source = local + _displacement(local.flatten(1, 3), people.shift_BK2).view_as(local)
    face = _face_colours(source, people, light)
    scenery = _scenery(background, generator)[:, :, None]
    alpha = _head_mask(source)[:, None]
    video = alpha * face + (1 - alpha) * scenery
    points = _forward(torch.tensor(POINTS_5xy), people, centre, scale, tilt)
    x0, y0, x1, y1 = BOX_xyxy
    corners = _forward(torch.tensor(((x0, y0), (x1, y0), (x0, y1), (x1, y1))), people, centre, scale, tilt)
    box = torch.cat([corners.amin(2), corners.amax(2)], -1)
    return Clips(video.clamp(0, 1) * 2 - 1, points, box, motion, background)


def scenery(count: int, generator: torch.Generator) -> Tensor:
    """Views without anybody: [B,3,H,W] in [0, 1]."""
    return _scenery(_draw(len(BACKGROUNDS), count, generator), generator).clamp(0, 1)


@cache
def _picture(name: str) -> Tensor:
    pixels = np.asarray(Image.open(PICTURES / name).convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _draw(high: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _trajectory(motion_B: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre [B,T,2] (pixels), scale [B,T] (pixels per face unit), tilt [B,T] (radians), light [B,T]."""
    time = torch.linspace(-0.5, 0.5, NUM_FRAMES)[None]
    middle = FRAME_PIXELS / 2 - 0.5
    amount = _uniform(count, 0.8, 1.2, generator)[:, None] * time

    def signed(plus: int, minus: int) -> Tensor:
        return ((motion_B == plus).float() - (motion_B == minus).float())[:, None] * amount

    x = middle + _uniform(count, -3, 3, generator)[:, None] + signed(1, 0) * MOTION_PIXELS
    y = middle - 4 + _uniform(count, -2, 2, generator)[:, None] + signed(3, 2) * MOTION_PIXELS
    scale = _uniform(count, 26, 32, generator)[:, None] * (1 + signed(4, 5) * MOTION_SCALE)
    tilt = _uniform(count, -0.08, 0.08, generator)[:, None] + signed(7, 6) * MOTION_TILT
    light = _uniform(count, 0.9, 1.1, generator)[:, None] * (1 + LIGHT_CHANGE * time)
    return torch.stack([x, y], -1), scale, tilt, light


def _pixel_grid() -> Tensor:
    axis = torch.arange(FRAME_PIXELS, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1)


def _to_face(pixels_HW2: Tensor, centre_BT2: Tensor, scale_BT: Tensor, tilt_BT: Tensor, aspect_B: Tensor) -> Tensor:
    """Pixels to face units of the identity: [B,T,H,W,2]."""
    offset = (pixels_HW2[None, None] - centre_BT2[:, :, None, None]) / scale_BT[:, :, None, None, None]
    cos, sin = torch.cos(tilt_BT)[:, :, None, None], torch.sin(tilt_BT)[:, :, None, None]
    x = cos * offset[..., 0] + sin * offset[..., 1]
    y = -sin * offset[..., 0] + cos * offset[..., 1]
    return torch.stack([x / aspect_B[:, None, None, None], y], -1)


def _displacement(points_BN2: Tensor, shift_BK2: Tensor) -> Tensor:
    """The smooth warp that turns an identity's face units into the portrait's."""
    centres = torch.tensor(BUMP_CENTRES_Kxy)
    weight_BNK = torch.exp(-((torch.cdist(points_BN2, centres.expand(len(points_BN2), -1, -1)) / BUMP_RADIUS) ** 2))
    return weight_BNK @ shift_BK2


def _forward(points_N2: Tensor, people: Identities, centre_BT2: Tensor, scale_BT: Tensor, tilt_BT: Tensor) -> Tensor:
    """Where the portrait's points land in each frame, in pixels: [B,T,N,2]; the warp is inverted by fixed-point iteration."""
    target = points_N2.expand(len(people.aspect_B), -1, -1)
    local = target
    for _ in range(20):
        local = target - _displacement(local, people.shift_BK2)
    local = torch.stack([local[..., 0] * people.aspect_B[:, None], local[..., 1]], -1)[:, None]
    cos, sin = torch.cos(tilt_BT)[:, :, None], torch.sin(tilt_BT)[:, :, None]
    rotated = torch.stack([cos * local[..., 0] - sin * local[..., 1], sin * local[..., 0] + cos * local[..., 1]], -1)
    return rotated * scale_BT[:, :, None, None] + centre_BT2[:, :, None]


def _face_colours(source_BTHW2: Tensor, people: Identities, light_BT: Tensor) -> Tensor:
    batch, frames, height, width, _ = source_BTHW2.shape
    grid = (source_BTHW2 / PORTRAIT_HALF_UNITS).reshape(batch, frames * height, width, 2)
    portrait = portrait_3HW()[None].expand(batch, -1, -1, -1)
    pixels = F.grid_sample(portrait, grid, padding_mode="border", align_corners=False)
    pixels = pixels.view(batch, 3, frames, height, width)
    x, y = source_BTHW2[..., 0], source_BTHW2[..., 1]
    skin = torch.sigmoid((1 - ((x + 0.02) / 0.5) ** 2 - ((y - 0.22) / 0.58) ** 2) * 6)[:, None]
    tint = skin * people.skin_B3[:, :, None, None, None] + (1 - skin) * people.hair_B3[:, :, None, None, None]
    return pixels * tint * light_BT[:, None, :, None, None]


def _head_mask(source_BTHW2: Tensor) -> Tensor:
    x, y = source_BTHW2[..., 0], source_BTHW2[..., 1]
    return torch.sigmoid((1 - (x / 0.84) ** 2 - ((y + 0.14) / 0.92) ** 2) * 10)


def _scenery(background_B: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each background: [B,3,H,W]."""
    pictures = torch.stack([_picture(f"{name}.png") for name in BACKGROUNDS])
    count = len(background_B)
    zoom = _uniform(count, 0.8, 0.95, generator)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    move = (torch.rand(count, 2, generator=generator) * 2 - 1) * (1 - zoom[:, None])
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * flip, zoom, move
    grid = F.affine_grid(theta, [count, 3, FRAME_PIXELS, FRAME_PIXELS], align_corners=False)
    views = F.grid_sample(pictures[background_B], grid, padding_mode="border", align_corners=False)
    return views * _uniform(count, 0.7, 1.2, generator)[:, None, None, None]


def to_uint8(video_3THW: Tensor) -> Sequence[np.ndarray]:
    """Frames as H W 3 arrays of bytes, as a video encoder takes them."""
    frames = ((video_3THW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return list(frames.permute(1, 2, 3, 0).numpy())
