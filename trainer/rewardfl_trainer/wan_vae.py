"""Wan's video VAE around its latents: encode without noise, decode exactly and differentiably.

The decoder is causal in time: it takes one latent frame after the other and carries a cache of past activations. Here every
latent frame is its own checkpoint, so the backward pass holds the activations of one frame instead of the whole video.
Nothing is tiled: the result is that of the full decoder.

Legend: B batch, C latent channels, t latent frames, T video frames = 4 (t - 1) + 1, h w latents, H W pixels = 8 h, 8 w.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .memory import Checkpointing

if TYPE_CHECKING:
    from diffsynth.models.wan_video_vae import WanVideoVAE

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 4
LATENT_CHANNELS = 16


def latent_frames(num_frames: int) -> int:
    """Return the latent frames of a video of `num_frames` (4k + 1) frames."""
    return (num_frames - 1) // TEMPORAL_FACTOR + 1


def latent_shape(num_frames: int, height: int, width: int) -> tuple[int, int, int, int, int]:
    """Return the shape of the latents of one video."""
    return (1, LATENT_CHANNELS, latent_frames(num_frames), height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)


def encode(vae: "WanVideoVAE", video_B3THW: Tensor) -> Tensor:
    """Return the normalised mean latents of videos in [-1, 1] (no sampling: mu only)."""
    latents_BCthw: Tensor = vae.model.encode(video_B3THW, vae.scale)
    vae.model.clear_cache()
    return latents_BCthw


def decode(vae: "WanVideoVAE", latents_BCthw: Tensor, checkpointing: Checkpointing | None = None) -> Tensor:
    """Return the videos of normalised latents, clamped to [-1, 1], in the latents' type.

    The gradient equals that of decoding without checkpoints.
    """
    checkpointing = checkpointing or Checkpointing(enabled=False)
    decoder = vae.model.decoder
    features_BCthw = vae.model.conv2(_denormalise(vae, latents_BCthw))
    vae.model.clear_cache()
    cache: list[Any] = list(vae.model._feat_map)
    frames: list[Tensor] = []

    def decode_frame(features_BC1hw: Tensor, *past: Any) -> tuple[Tensor, list[Any]]:
        video_B3THW, present, _ = decoder(features_BC1hw, feat_cache=list(past), feat_idx=[0])
        return video_B3THW, present

    for features_BC1hw in features_BCthw.split(1, dim=2):
        video_B3THW, cache = checkpointing.run(decode_frame, features_BC1hw, *cache)
        frames.append(video_B3THW)
    return torch.cat(frames, dim=2).clamp(-1, 1)


def _denormalise(vae: "WanVideoVAE", latents_BCthw: Tensor) -> Tensor:
    """Return latents * std + mean, computed in fp32 or wider, in the order of DiffSynth's own decode."""
    wide = torch.promote_types(latents_BCthw.dtype, torch.float32)
    mean, inverse_std = (values.to(latents_BCthw.device, wide).view(1, -1, 1, 1, 1) for values in vae.scale)
    denormalised_BCthw: Tensor = latents_BCthw.to(wide) / inverse_std + mean
    return denormalised_BCthw.to(latents_BCthw.dtype)
