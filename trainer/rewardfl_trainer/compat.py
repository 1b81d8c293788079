"""Every place where the loss departs from that of ROLL's Reward FL, as values: `training.compat` chooses one of two sets.

`none` is the correct form, `roll` the reference's, its mistakes included, so that parity can be measured. A departure is a
field here and is looked at where it matters; no other module asks for the name of the mode.

Source: `roll/pipeline/diffusion` of alibaba/ROLL before it was removed in v0.3.0 (docs/algorithm.md lists the differences).
"""

from dataclasses import dataclass

import torch

from rewardfl_api.training import TrainingParameters

from .rewards.conventions import CORRECT_FACES, ROLL_FACES, FaceConventions

ROLL_NOISE_SEED = 24
ROLL_BOUNDARIES = (0.9, 1.0)


@dataclass(frozen=True)
class Tiles:
    """Overlapping tiles of the decoder, in latent pixels, height and width."""

    size: tuple[int, int] = (34, 34)
    stride: tuple[int, int] = (18, 16)


@dataclass(frozen=True)
class Conventions:
    """How a loss is computed where there is a choice."""

    faces: FaceConventions
    """Detector input, crop, channel order, faceless frames."""
    fixed_noise_seed: int | None
    """Seed of the one noise that every sample, step and rank gets; None: noise derived from seed, row and draw."""
    boundaries: tuple[float, float] | None
    """Timestep boundaries that replace the parameters' where there are two DiTs."""
    finish_denoising: bool
    """Whether the steps after the window are made before decoding; False decodes what the window leaves."""
    tiles: Tiles | None
    """Decode in overlapping tiles; None: the exact decoder."""
    loss_dtype: torch.dtype | None
    """Type in which the reward term and the loss are rounded after every operation; None: that of the score."""
    shuffle: bool
    """Whether the order of the rows is drawn anew on every pass."""

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Conventions":
        """Return the conventions that `training.compat` names."""
        return ROLL if parameters.compat == "roll" else CORRECT


CORRECT = Conventions(
    faces=CORRECT_FACES,
    fixed_noise_seed=None,
    boundaries=None,
    finish_denoising=True,
    tiles=None,
    loss_dtype=None,
    shuffle=True,
)

ROLL = Conventions(
    faces=ROLL_FACES,
    fixed_noise_seed=ROLL_NOISE_SEED,
    boundaries=ROLL_BOUNDARIES,
    finish_denoising=False,
    tiles=Tiles(),
    loss_dtype=torch.bfloat16,
    shuffle=False,
)
