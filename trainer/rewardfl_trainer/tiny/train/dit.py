"""Trains the two experts by flow matching, each on its own noise levels of the trainer's eight-step schedule.

v = noise - x0 at x_t = (1 - sigma) x0 + sigma noise; the input is latents, mask and encoded first frame, 36 channels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from torch import Tensor

from rewardfl_trainer.sampling import NUM_TRAIN_TIMESTEPS
from rewardfl_trainer.tiny import faces, store
from rewardfl_trainer.tiny.spec import DIT_KWARGS, HIGH_NOISE_BOUNDARY, TEXT_KWARGS, TEXT_TOKENS, TIMESTEPS, VAE_KWARGS
from rewardfl_trainer.tiny.train.loop import Budget, minimise
from rewardfl_trainer.tiny.train.text import captions, embed
from rewardfl_trainer.wan_dit import predict_velocity

CLIPS_PER_STEP = 32
TIMESTEP_JITTER = 10.0
MASK_CHANNELS = 4


@dataclass
class Latents:
    """Encoded clips: x0 and condition (N C t h w), the caption of each, and every caption's embedding."""

    video_NCthw: Tensor
    image_NCthw: Tensor
    caption_N: Tensor
    context_PLD: Tensor


@torch.no_grad()
def encode_clips(count: int, seed: int, vae: VideoVAE_, batch: int = 16) -> Latents:
    """Render and encode `count` clips."""
    generator, scale = torch.Generator().manual_seed(seed), WanVideoVAE().scale
    videos, images, chosen = [], [], []
    for _ in range(0, count, batch):
        clips = faces.render(faces.identities(batch, generator), generator)
        first = torch.zeros_like(clips.video_B3THW)
        first[:, :, 0] = clips.video_B3THW[:, :, 0]
        videos.append(vae.encode(clips.video_B3THW, scale))
        images.append(condition(vae.encode(first, scale)))
        chosen.append(clips.motion_B * len(faces.BACKGROUNDS) + clips.background_B)
    return Latents(torch.cat(videos), torch.cat(images), torch.cat(chosen), caption_embeddings())


def condition(latents_BCthw: Tensor) -> Tensor:
    """Mask channels (1 on the first latent frame) before the encoded first frame: B 20 t h w."""
    mask = torch.zeros_like(latents_BCthw[:, :MASK_CHANNELS])
    mask[:, :, 0] = 1
    return torch.cat([mask, latents_BCthw], 1)


@torch.no_grad()
def caption_embeddings() -> Tensor:
    """[captions, 512, D] in the order of `captions()`, from the stored text encoder, as it is written (bf16)."""
    encoder = WanTextEncoder(**TEXT_KWARGS).eval()
    encoder.load_state_dict({name: value.bfloat16().float() for name, value in store.load("text").items()})
    tokenizer = HuggingfaceTokenizer(str(store.FOLDER), seq_len=TEXT_TOKENS, clean="whitespace")
    return torch.cat([embed(encoder, tokenizer, [text]) for text, _, _ in captions()])


def stored_vae() -> VideoVAE_:
    """The VAE of the repository."""
    vae = VideoVAE_(**VAE_KWARGS).eval().requires_grad_(False)
    vae.load_state_dict(store.load("vae"))
    return vae


def timesteps_of(expert: Literal["high", "low"]) -> list[float]:
    """The schedule's timesteps that belong to an expert."""
    high = [t for t in TIMESTEPS if t / NUM_TRAIN_TIMESTEPS >= HIGH_NOISE_BOUNDARY]
    return high if expert == "high" else [t for t in TIMESTEPS if t not in high]


def matching_loss(model: WanModel, data: Latents, timesteps: Tensor, generator: torch.Generator) -> Tensor:
    """Flow matching on a random batch, a timestep for each sample."""
    rows = torch.randint(len(data.video_NCthw), (CLIPS_PER_STEP,), generator=generator)
    timestep = timesteps[torch.randint(len(timesteps), (CLIPS_PER_STEP,), generator=generator)]
    timestep = (timestep + TIMESTEP_JITTER * (torch.rand(CLIPS_PER_STEP, generator=generator) * 2 - 1)).clamp(
        max=NUM_TRAIN_TIMESTEPS
    )
    sigma = (timestep / NUM_TRAIN_TIMESTEPS).view(-1, 1, 1, 1, 1)
    clean = data.video_NCthw[rows]
    noise = torch.randn(clean.shape, generator=generator)
    noisy = (1 - sigma) * clean + sigma * noise
    velocity = predict_velocity(model, noisy, timestep, data.context_PLD[data.caption_N[rows]], data.image_NCthw[rows])
    return F.mse_loss(velocity, noise - clean)


def train(
    expert: Literal["high", "low"], budget: Budget, seed: int, clips: int, start: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], list[float]]:
    """Train an expert from `start` or from scratch; returns the state and the losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = WanModel(**DIT_KWARGS)
    if start is not None:
        model.load_state_dict(start)
    data = encode_clips(clips, seed, stored_vae())
    timesteps = torch.tensor(timesteps_of(expert))
    losses = minimise(model.parameters(), lambda step: matching_loss(model, data, timesteps, generator), budget)
    return {name: value.detach() for name, value in model.state_dict().items()}, losses
