"""Trains the tiny video VAE: pixels to 16 channels at 1/8 of the size and 1/4 of the frames, and back.

Afterwards WanVideoVAE's fixed channel mean and deviation are folded into the two 1x1x1 convolutions at the latent boundary, so
that normalised latents have mean 0 and deviation 1, as the real model's have.
"""

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from torch import Tensor

from rewardfl_trainer.tiny import faces
from rewardfl_trainer.tiny.spec import LATENT_CHANNELS, VAE_KWARGS
from rewardfl_trainer.tiny.train.loop import Budget, minimise

CLIPS_PER_STEP = 6
SHORT_FRAMES = 5
LATENT_NOISE = 0.15
"""Noise on the latents while training: a decoder that forgives small errors of the DiT."""
UNIT_SCALE = [torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS)]


def reconstruction_loss(video: Tensor, target: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences to the right and below, B 3 T H W."""
    edges = (video.diff(dim=3) - target.diff(dim=3)).abs().mean() + (video.diff(dim=4) - target.diff(dim=4)).abs().mean()
    return (video - target).abs().mean() + edges


def latent_loss(latents: Tensor) -> Tensor:
    """Keeps every channel near mean 0 and deviation 1."""
    values = latents.transpose(0, 1).flatten(1)
    return values.mean(1).square().mean() + (values.std(1) - 1).square().mean()


def train(budget: Budget, seed: int, start: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Train from `start` (an unfolded state) or from scratch; returns the unfolded state and the losses."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VideoVAE_(**VAE_KWARGS)
    if start is not None:
        model.load_state_dict(start)

    def loss_of_step(step: int) -> Tensor:
        frames = faces.NUM_FRAMES if step % 4 == 0 else SHORT_FRAMES
        clips = CLIPS_PER_STEP if frames == SHORT_FRAMES else CLIPS_PER_STEP // 2
        video = faces.render(faces.identities(clips, generator), generator).video_B3THW[:, :, :frames]
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(video, UNIT_SCALE)
            noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
            decoded = model.decode(noisy, UNIT_SCALE)
        return reconstruction_loss(decoded.float(), video) + 0.1 * latent_loss(latents.float())

    losses = minimise(model.parameters(), loss_of_step, budget)
    return {name: value.detach() for name, value in model.state_dict().items()}, losses


@torch.no_grad()
def fold_scale(state: dict[str, Tensor], seed: int, clips: int = 64) -> dict[str, Tensor]:
    """Fold the measured and WanVideoVAE's channel statistics into `conv1` and `conv2`."""
    model = VideoVAE_(**VAE_KWARGS)
    model.load_state_dict(state)
    generator = torch.Generator().manual_seed(seed)
    video = faces.render(faces.identities(clips, generator), generator).video_B3THW
    values = model.encode(video, UNIT_SCALE).transpose(0, 1).flatten(1)
    mean, std = values.mean(1), values.std(1)
    wan = WanVideoVAE()
    gain = wan.std / std
    folded = {name: value.clone() for name, value in state.items()}
    out_gain = torch.cat([gain, torch.ones(LATENT_CHANNELS)])
    folded["conv1.weight"] *= out_gain[:, None, None, None, None]
    folded["conv1.bias"] *= out_gain
    folded["conv1.bias"][:LATENT_CHANNELS] += wan.mean - mean * gain
    weight = state["conv2.weight"]
    folded["conv2.weight"] = weight / gain[None, :, None, None, None]
    folded["conv2.bias"] = state["conv2.bias"] + torch.einsum("oc,c->o", weight[:, :, 0, 0, 0], mean - wan.mean / gain)
    return folded


def psnr(video: Tensor, target: Tensor) -> float:
    """Peak signal to noise ratio in dB of pictures in [-1, 1]."""
    return float(10 * torch.log10(4 / F.mse_loss(video.clamp(-1, 1), target)))
