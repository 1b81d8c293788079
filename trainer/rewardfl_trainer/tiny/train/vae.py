"""Trains the tiny video VAE: pixels to 16 channels at 1/8 of the size and 1/4 of the frames, and back.

Afterwards WanVideoVAE's fixed channel mean and deviation are folded into the two 1x1x1 convolutions at the latent boundary, so
that normalised latents have mean 0 and deviation 1, as the real model's have.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffsynth.models.wan_video_vae import CausalConv3d, VideoVAE_, WanVideoVAE
from torch import Tensor

from rewardfl_trainer.tiny import faces
from rewardfl_trainer.tiny.spec import LATENT_CHANNELS, VAE_KWARGS
from rewardfl_trainer.tiny.train.loop import Budget, minimise

PICTURES_PER_STEP = 32
CLIPS_BY_FRAMES = {5: 6, 9: 3}
"""Clips in a step, by the frames that are taken of each."""
LATENT_NOISE = 0.15
"""Noise on the latents while training: a decoder that forgives small errors of the DiT."""
UNIT_SCALE = [torch.zeros(LATENT_CHANNELS), torch.ones(LATENT_CHANNELS)]


def reconstruction_loss(video: Tensor, target: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences to the right and below, B 3 T H W."""
    edges = (video.diff(dim=3) - target.diff(dim=3)).abs().mean() + (video.diff(dim=4) - target.diff(dim=4)).abs().mean()
    return 2 * (video - target).abs().mean() + edges


def latent_loss(latents: Tensor) -> Tensor:
    """Keeps every channel near mean 0 and deviation 1."""
    values = latents.transpose(0, 1).flatten(1)
    return values.mean(1).square().mean() + (values.std(1) - 1).square().mean()


def train_pictures(budget: Budget, seed: int, start: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], list[float]]:
    """Train on single frames, which are cheap; then `inflate` makes the state one that repeats them in time."""
    model, generator = _model(seed, start)

    def loss_of_step(step: int) -> Tensor:
        people = faces.identities(PICTURES_PER_STEP, generator)
        with single_frames():
            return _loss(model, faces.render(people, generator, frames=1).video_B3THW, generator)

    losses = minimise(model.parameters(), loss_of_step, budget)
    return {name: value.detach() for name, value in model.state_dict().items()}, losses


def train_clips(budget: Budget, seed: int, start: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[float]]:
    """Train on clips from `start`; returns the unfolded state and the losses."""
    model, generator = _model(seed, start)

    def loss_of_step(step: int) -> Tensor:
        frames = 9 if step % 3 == 0 else 5
        people = faces.identities(CLIPS_BY_FRAMES[frames], generator)
        return _loss(model, faces.render(people, generator, frames=frames).video_B3THW, generator)

    losses = minimise(model.parameters(), loss_of_step, budget)
    return {name: value.detach() for name, value in model.state_dict().items()}, losses


@contextmanager
def single_frames() -> Iterator[None]:
    """Skip the taps of causal convolutions that see only the padding before a video of one frame: a third of the work."""
    original = CausalConv3d.forward

    def forward(layer: CausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        padded = F.pad(x, [*layer._padding[:4], 0, 0])
        return F.conv3d(padded, layer.weight[:, :, -1:], layer.bias, layer.stride)

    CausalConv3d.forward = forward
    try:
        yield
    finally:
        CausalConv3d.forward = original


@torch.no_grad()
def inflate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state trained on pictures, made to treat every frame alike: past taps zero, time down by mean, time up by repetition."""
    inflated = {name: value.clone() for name, value in state.items()}
    for name, value in inflated.items():
        if value.dim() != 5 or value.shape[2] == 1:
            continue
        value[:, :, :-1] = 0
        if "time_conv" in name:
            width, down = value.shape[1], value.shape[0] == value.shape[1]
            identity = torch.eye(width)[:, :, None, None]
            value[:, :, -1] = identity / 2 if down else torch.cat([identity, identity])
            if down:
                value[:, :, -2] = identity / 2
            inflated[name.replace("weight", "bias")].zero_()
    return inflated


def _model(seed: int, start: dict[str, Tensor] | None) -> tuple[VideoVAE_, torch.Generator]:
    torch.manual_seed(seed)
    model = VideoVAE_(**VAE_KWARGS)
    if start is not None:
        model.load_state_dict(start)
    return model, torch.Generator().manual_seed(seed)


def _loss(model: VideoVAE_, video: Tensor, generator: torch.Generator) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(video, UNIT_SCALE)
        noisy = latents + LATENT_NOISE * torch.randn(latents.shape, generator=generator)
        decoded = model.decode(noisy, UNIT_SCALE)
    return reconstruction_loss(decoded.float(), video) + 0.1 * latent_loss(latents.float())


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
