"""Wan's video VAE around its latents: encode without noise, decode exactly and differentiably.

The decoder is causal in time: it takes one latent frame after the other and carries a cache of past activations. Here every
latent frame is its own checkpoint, so the backward pass holds the activations of one frame instead of the whole video. The
caches are large too (1.1 GB each at 480x480 in bf16): only those at the start of a few segments are kept, and the others are
computed again when their segment's turn comes (docs/decisions/0080). Nothing is tiled: the result is that of the full decoder.

Legend: B batch, C latent channels, t latent frames, T video frames = 4 (t - 1) + 1, h w latents, H W pixels = 8 h, 8 w.
"""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .compat import Tiles
from .memory import Checkpointing

if TYPE_CHECKING:
    from diffsynth.models.wan_video_vae import WanVideoVAE

SPATIAL_FACTOR = 8
TEMPORAL_FACTOR = 4
LATENT_CHANNELS = 16

LEAST_SEGMENT = 6
"""Latent frames of the first segment at least: what 81 frames of video need. Shorter videos gain speed by it, not less memory."""


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


def decode(
    vae: "WanVideoVAE", latents_BCthw: Tensor, checkpointing: Checkpointing | None = None, tiles: Tiles | None = None
) -> Tensor:
    """Return the videos of normalised latents, clamped to [-1, 1], in the latents' type.

    The gradient equals that of decoding without checkpoints. `tiles` decodes as ROLL does, in overlapping tiles that are blended,
    with the latents' statistics in their type.
    """
    checkpointing = checkpointing or Checkpointing(enabled=False)
    if tiles is None:
        return _decode_features(vae, vae.model.conv2(_denormalise(vae, latents_BCthw)), checkpointing).clamp(-1, 1)
    mean, inverse_std = (values.to(latents_BCthw).view(1, -1, 1, 1, 1) for values in vae.scale)
    features_BCthw = vae.model.conv2(latents_BCthw / inverse_std + mean)
    return _decode_tiles(vae, features_BCthw, checkpointing, tiles).clamp(-1, 1)


def _decode_features(vae: "WanVideoVAE", features_BCthw: Tensor, checkpointing: Checkpointing) -> Tensor:
    """Run the decoder over the latent frames, one after the other."""
    decoder = vae.model.decoder
    vae.model.clear_cache()
    cache: list[Any] = list(vae.model._feat_map)
    videos: list[Tensor] = []

    def decode_frame(features_BC1hw: Tensor, *past: Any) -> tuple[Tensor, list[Any]]:
        video_B3THW, present, _ = decoder(features_BC1hw, feat_cache=list(past), feat_idx=[0])
        return video_B3THW, present

    # Offloaded caches are in CPU memory already, so there is one level only.
    outer = Checkpointing(checkpointing.enabled and not checkpointing.offload)

    def decode_segment(features_BCshw: Tensor, *past: Any, then_differentiated: bool = outer.enabled) -> tuple[Tensor, list[Any]]:
        frames, present = [], list(past)
        *first, last = torch.split(features_BCshw, 1, dim=2)
        for features_BC1hw in first:
            video_B3THW, present = checkpointing.run(decode_frame, features_BC1hw, *present)
            frames.append(video_B3THW)
        # The backward pass begins with the last frame: it would only be decoded again at once.
        run = decode_frame if then_differentiated else partial(checkpointing.run, decode_frame)
        video_B3THW, present = run(last, *present)
        return torch.cat([*frames, video_B3THW], dim=2), present

    # The last segment's turn comes at once: its caches are kept.
    *segments, last = features_BCthw.split_with_sizes(segment_lengths(features_BCthw.shape[2]), dim=2)
    for features_BCshw in segments:
        video_B3THW, cache = outer.run(decode_segment, features_BCshw, *cache)
        videos.append(video_B3THW)
    videos.append(decode_segment(last, *cache, then_differentiated=True)[0])
    return torch.cat(videos, dim=2)


def segment_lengths(num_latent_frames: int) -> list[int]:
    """Return how the latent frames are cut into segments: m, m - 1, m - 2, ... with the smallest m >= 6 that reaches the end.

    The backward pass goes from the last segment to the first and frees each one's starting cache: the earlier the segment,
    the more room there is for its own caches. At any time at most m - 1 caches are kept, about sqrt(2 t).
    """
    longest = max(LEAST_SEGMENT, math.ceil((math.sqrt(8 * num_latent_frames + 1) - 1) / 2))
    lengths: list[int] = []
    while (left := num_latent_frames - sum(lengths)) > 0:
        lengths.append(min(left, longest - len(lengths)))
    return lengths


def _decode_tiles(vae: "WanVideoVAE", features_BCthw: Tensor, checkpointing: Checkpointing, tiles: Tiles) -> Tensor:
    """Decode each tile and blend them with weights that rise linearly over the overlap (the smaller of both axes' weights)."""
    height, width = features_BCthw.shape[-2:]
    batch, time = len(features_BCthw), TEMPORAL_FACTOR * (features_BCthw.shape[2] - 1) + 1
    video_B3THW = features_BCthw.new_zeros(batch, 3, time, height * SPATIAL_FACTOR, width * SPATIAL_FACTOR)
    weight_HW = features_BCthw.new_zeros(video_B3THW.shape[-2:])
    for top in _tile_starts(height, tiles.size[0], tiles.stride[0]):
        for left in _tile_starts(width, tiles.size[1], tiles.stride[1]):
            bottom, right = min(top + tiles.size[0], height), min(left + tiles.size[1], width)
            decoded = _decode_features(vae, features_BCthw[..., top:bottom, left:right], checkpointing)
            rows = _tile_weights(top, bottom, height, tiles.size[0] - tiles.stride[0])
            columns = _tile_weights(left, right, width, tiles.size[1] - tiles.stride[1])
            mask_HW = torch.minimum(rows[:, None], columns[None, :]).to(video_B3THW)
            area = (
                slice(top * SPATIAL_FACTOR, bottom * SPATIAL_FACTOR),
                slice(left * SPATIAL_FACTOR, right * SPATIAL_FACTOR),
            )
            video_B3THW[(..., *area)] += decoded * mask_HW
            weight_HW[area] += mask_HW
    return video_B3THW / weight_HW


def _tile_starts(length: int, size: int, stride: int) -> list[int]:
    """Return where tiles begin; none begins where the tile before it already reaches the end."""
    return [start for start in range(0, length, stride) if start == 0 or start - stride + size < length]


def _tile_weights(start: int, end: int, length: int, overlap: int) -> Tensor:
    """Return a tile's weights along one axis in pixels: 1 inside and at the picture's edge, rising over the overlap."""
    weights = torch.ones((end - start) * SPATIAL_FACTOR)
    border = overlap * SPATIAL_FACTOR
    ramp = (torch.arange(border) + 1) / border
    if start > 0:
        weights[:border] = ramp[: len(weights)]
    if end < length:
        weights[-border:] = ramp.flip(0)[-len(weights) :]
    return weights


def _denormalise(vae: "WanVideoVAE", latents_BCthw: Tensor) -> Tensor:
    """Return latents * std + mean, computed in fp32 or wider, in the order of DiffSynth's own decode."""
    wide = torch.promote_types(latents_BCthw.dtype, torch.float32)
    mean, inverse_std = (values.to(latents_BCthw.device, wide).view(1, -1, 1, 1, 1) for values in vae.scale)
    denormalised_BCthw: Tensor = latents_BCthw.to(wide) / inverse_std + mean
    return denormalised_BCthw.to(latents_BCthw.dtype)
