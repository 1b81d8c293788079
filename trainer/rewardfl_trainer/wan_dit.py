"""One forward pass of DiffSynth's Wan diffusion transformer: noisy latents in, velocity out.

DiffSynth's own pipeline function computes the time embedding in the latents' type; at bf16 it would also take a rounded
timestep (937.5 becomes 936). Here the timestep, its sinusoids and the two time layers are fp32, as in Wan's own code.

Legend: B batch, C channels, t h w latent frames, height and width, L tokens of text, S tokens of video, D width of the model.
"""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .memory import Checkpointing

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel

TIME_MODULES = ("time_embedding", "time_projection")
"""Kept in fp32 whatever the compute type (0.3 GB in a 14B model)."""


def predict_velocity(
    dit: "WanModel",
    latents_BCthw: Tensor,
    timestep: Tensor,
    context_BLD: Tensor,
    image_BCthw: Tensor | None = None,
    checkpointing: Checkpointing | None = None,
) -> Tensor:
    """Return the velocity (noise - video), shape and type of `latents_BCthw`.

    Args:
        dit: the transformer.
        latents_BCthw: noisy latents, 16 channels, in the compute type.
        timestep: shape [1] or [B], fp32, 0 to 1000.
        context_BLD: text embeddings in the compute type.
        image_BCthw: mask and encoded first frame, 20 channels. None for a model that takes none.
        checkpointing: how activations are kept. None: all of them.
    """
    time_BD, modulation_B6D = _time_embedding(dit, timestep.to(latents_BCthw.device), latents_BCthw.dtype)
    context_BLD = dit.text_embedding(context_BLD)
    x_BCthw = latents_BCthw if image_BCthw is None else torch.cat([latents_BCthw, image_BCthw], dim=1)
    x_BDthw = dit.patchify(x_BCthw)
    grid = (x_BDthw.shape[2], x_BDthw.shape[3], x_BDthw.shape[4])
    x_BSD = x_BDthw.flatten(2).transpose(1, 2).contiguous()
    rotation = _rotary_frequencies(dit, grid, x_BSD.device)
    checkpointing = checkpointing or Checkpointing(enabled=False)
    for number, start in enumerate(range(0, len(dit.blocks), checkpointing.blocks)):
        blocks = dit.blocks[start : start + checkpointing.blocks]
        # Only x is an argument of the checkpoint, and offloaded: the rest is the same for all blocks.
        run_blocks = partial(_run_blocks, blocks, context_BLD, modulation_B6D, rotation)
        x_BSD = checkpointing.run(run_blocks, x_BSD, keep_attention=checkpointing.keeps_attention(number))
    velocity_BCthw: Tensor = dit.unpatchify(dit.head(x_BSD, time_BD), grid)
    return velocity_BCthw


def keep_attention_exact() -> None:
    """Keep DiffSynth from choosing SageAttention where that is installed: it rounds to eight bits and returns no gradient."""
    from diffsynth.models import wan_video_dit  # noqa: PLC0415 - a slow import

    wan_video_dit.SAGE_ATTN_AVAILABLE = False


def _run_blocks(
    blocks: Iterable[nn.Module], context_BLD: Tensor, modulation_B6D: Tensor, rotation: Tensor, x_BSD: Tensor
) -> Tensor:
    """Run some of the transformer's blocks, one after the other."""
    for block in blocks:
        x_BSD = block(x_BSD, context_BLD, modulation_B6D, rotation)
    return x_BSD


def _time_embedding(dit: "WanModel", timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the time embedding [B, D] and its six modulations [B, 6, D], computed in fp32 or wider, in the type `dtype`."""
    from diffsynth.models.wan_video_dit import sinusoidal_embedding_1d  # noqa: PLC0415 - a slow import, not needed by tests of the rest

    weight: Tensor = dit.time_embedding[0].weight
    sinusoid = sinusoidal_embedding_1d(dit.freq_dim, timestep.to(torch.promote_types(timestep.dtype, weight.dtype)))
    time_BD = dit.time_embedding(sinusoid.to(weight.dtype))
    modulation_B6D = dit.time_projection(time_BD).unflatten(1, (6, dit.dim))
    return time_BD.to(dtype), modulation_B6D.to(dtype)


def _rotary_frequencies(dit: "WanModel", grid: tuple[int, int, int], device: torch.device) -> Tensor:
    """Return the rotations of rotary position embedding for every token of the grid, shape [S, 1, head / 2], complex."""
    frames, height, width = grid
    # Moved before they are spread out: a table is 0.1 MB, all rotations of a 480x480x81 video are 19 MB.
    in_time, in_height, in_width = (table[:length].to(device) for table, length in zip(dit.freqs, grid, strict=True))
    parts = [
        in_time.view(frames, 1, 1, -1).expand(frames, height, width, -1),
        in_height.view(1, height, 1, -1).expand(frames, height, width, -1),
        in_width.view(1, 1, width, -1).expand(frames, height, width, -1),
    ]
    return torch.cat(parts, dim=-1).reshape(frames * height * width, 1, -1)
