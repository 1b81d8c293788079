"""Wan networks of DiffSynth's real classes at toy width with seeded random weights, for the tests of the trainer's parts."""

from typing import Any

import torch
from diffsynth.core.vram.initialization import skip_model_initialization
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from torch import Tensor, nn

DIT_ARGUMENTS: dict[str, Any] = {
    "dim": 48,
    "in_dim": 36,
    "ffn_dim": 64,
    "out_dim": 16,
    "text_dim": 24,
    "freq_dim": 32,
    "eps": 1e-6,
    "patch_size": [1, 2, 2],
    "num_heads": 2,
    "num_layers": 2,
    "has_image_input": False,
    "require_clip_embedding": False,
}
VAE_ARGUMENTS: dict[str, Any] = {"dim": 8, "z_dim": 16, "dim_mult": [1, 1, 2, 2], "num_res_blocks": 1}
TEXT_ARGUMENTS: dict[str, Any] = {
    "vocab": 64,
    "dim": 24,
    "dim_attn": 24,
    "dim_ffn": 32,
    "num_heads": 2,
    "num_layers": 1,
    "num_buckets": 8,
    "dropout": 0.0,
}


def small_dit(seed: int = 0) -> WanModel:
    """Return a frozen DiT."""
    return frozen(lambda: WanModel(**DIT_ARGUMENTS), seed)


def small_vae(seed: int = 0) -> WanVideoVAE:
    """Return a frozen VAE whose attention does something."""

    def build() -> WanVideoVAE:
        with skip_model_initialization():
            vae = WanVideoVAE()
        vae.model = VideoVAE_(**VAE_ARGUMENTS)
        return vae

    vae = frozen(build, seed)
    for module in vae.modules():
        if hasattr(module, "proj") and isinstance(module.proj, nn.Conv2d):
            nn.init.normal_(module.proj.weight, std=0.1, generator=torch.Generator().manual_seed(seed))
    return vae


def small_text_encoder(seed: int = 0) -> WanTextEncoder:
    """Return a frozen umT5 encoder."""
    return frozen(lambda: WanTextEncoder(**TEXT_ARGUMENTS), seed)


def frozen(build: Any, seed: int) -> Any:
    """Build a network from a seed and freeze it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().requires_grad_(False).eval()


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return seeded N(0, 1) values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
