"""Everything random of a training step, derived from what the step is about: never from rank, world size or history.

The same (seed, row, draw) gives the same noise on any machine, so runs can be compared, resumed and spread differently.
"""

import hashlib
from typing import Literal

import torch
from torch import Tensor

from .sampling import Window

SEED_BITS = 63
"""torch's generators take a signed 64-bit seed."""


def derived_seed(*parts: int | str) -> int:
    """Return a seed for what `parts` name. Different parts give independent seeds."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - SEED_BITS)


def sample_noise(
    shape: tuple[int, ...], *, seed: int, row: int, draw: int, purpose: Literal["train", "sample"] = "train"
) -> Tensor:
    """Return N(0, 1) noise in fp32 on the CPU, where its values do not depend on the device.

    Args:
        shape: shape of the latents.
        seed: `training.seed`.
        row: index of the dataset row.
        draw: which of the row's noises.
        purpose: sample videos get noises that are never trained with.
    """
    generator = torch.Generator().manual_seed(derived_seed(purpose, seed, row, draw))
    return torch.randn(shape, generator=generator)


def fixed_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Return the noise that ROLL gives every sample: N(0, 1) in fp32, drawn on the device it is used on."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def kl_steps(window: Window, *, sampled: bool, seed: int, row: int, visit: int) -> list[int]:
    """Return the steps on which the KL is computed: all of the window, or one drawn uniformly for this visit of the row."""
    if not sampled:
        return list(window.steps)
    return [window.first + derived_seed("kl", seed, row, visit) % len(window)]
