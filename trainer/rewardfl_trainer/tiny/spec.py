"""Sizes and constructor arguments of the tiny family: the one place that train, export and check read.

It holds constants only: no network, no file access.
"""

from typing import Any, Final

FRAME_PIXELS: Final = 64
"""Height and width of a clip, in pixels (a multiple of 16: 8 from the VAE, 2 from the DiT's patch)."""
NUM_FRAMES: Final = 9
"""Frames in a clip: 4k+1."""
FRAMES_PER_SECOND: Final = 8
TEXT_TOKENS: Final = 512
LATENT_CHANNELS: Final = 16

DIT_KWARGS: Final[dict[str, Any]] = {
    "has_image_input": False,
    "patch_size": [1, 2, 2],
    "in_dim": 36,
    "dim": 96,
    "ffn_dim": 384,
    "freq_dim": 64,
    "text_dim": 32,
    "out_dim": LATENT_CHANNELS,
    "num_heads": 4,
    "num_layers": 4,
    "eps": 1e-6,
    "require_clip_embedding": False,
}
VAE_KWARGS: Final[dict[str, Any]] = {"dim": 16, "z_dim": LATENT_CHANNELS, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
TEXT_KWARGS: Final[dict[str, Any]] = {
    "vocab": 384,
    "dim": 32,
    "dim_attn": 32,
    "dim_ffn": 64,
    "num_heads": 2,
    "num_layers": 2,
    "num_buckets": 32,
    "shared_pos": False,
    "dropout": 0.0,
}

TIMESTEPS: Final = (1000.0, 972.2222, 937.5, 892.8571, 833.3333, 750.0, 625.0, 416.6667)
"""The trainer's eight timesteps: shift 5, eight Euler steps (`sampling.py` computes them exactly)."""
HIGH_NOISE_BOUNDARY: Final = 0.9
"""t / 1000 at or above it goes to the high-noise expert."""

MODEL_FOLDER: Final = "Wan2.2-I2V-A14B"
FACE_FOLDER: Final = "antelopev2"
