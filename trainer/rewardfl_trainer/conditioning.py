"""What a video is generated from: the prompt's embedding, and the first (and last) frame as the DiT's image channels.

The same computation as DiffSynth's prompt and image units for Wan, on tensors. Must not sample or decode.

Legend: B batch, L text tokens, D text width, T frames, H W pixels, t h w latent frames, height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

from .models import Models, NotLoadedError
from .wan_vae import LATENT_CHANNELS, SPATIAL_FACTOR, TEMPORAL_FACTOR, encode, latent_shape

MASK_CHANNELS = TEMPORAL_FACTOR
"""One mask channel for each frame that a latent frame stands for."""


@dataclass(frozen=True)
class Condition:
    """What the DiT is told about one video."""

    context_BLD: Tensor
    image_BCthw: Tensor | None
    """4 mask channels and 16 channels of the encoded first frame; None without image input."""
    latent_shape: tuple[int, int, int, int, int]


class Conditioner:
    """Turns a prompt and a video into the condition of its generation.

    Raises:
        RewardFLError: `inputs` do not fit the DiT (BadConfiguration, exit code 78).
    """

    def __init__(self, models: Models, inputs: Sequence[str], dtype: torch.dtype, device: torch.device) -> None:
        self.models, self.inputs, self.dtype, self.device = models, tuple(inputs), dtype, device
        dit = models.dit or models.dit2
        if dit is not None:
            check_inputs(self.inputs, dit.in_dim)

    def __call__(self, prompt: str, video_3THW: Tensor) -> Condition:
        """Return the condition of one video in [-1, 1]; only its first (and last) frame is looked at."""
        _, num_frames, height, width = video_3THW.shape
        image = self.image(video_3THW) if self.inputs else None
        return Condition(self.text(prompt), image, latent_shape(num_frames, height, width))

    def text(self, prompt: str) -> Tensor:
        """Return the prompt's embedding [1, 512, D], zero beyond the prompt's tokens."""
        tokenizer, text_encoder = self.models.tokenizer, self.models.network("text_encoder")
        if tokenizer is None:
            raise NotLoadedError("the tokenizer")
        ids, mask = tokenizer(prompt, return_mask=True, add_special_tokens=True)
        ids, mask = ids.to(self.device), mask.to(self.device)
        context_BLD: Tensor = text_encoder(ids, mask)
        context_BLD = context_BLD * mask.gt(0).unsqueeze(-1)
        return context_BLD.to(self.dtype)

    def image(self, video_3THW: Tensor) -> Tensor:
        """Return mask and encoded frames [1, 20, t, h, w]: the known frames, and mid-grey where nothing is known."""
        num_frames, height, width = video_3THW.shape[1:]
        known = [0, num_frames - 1] if "end_image" in self.inputs else [0]
        frames_3THW = torch.zeros_like(video_3THW, device=self.device, dtype=self.dtype)
        frames_3THW[:, known] = video_3THW[:, known].to(self.device, self.dtype)
        latents_BCthw = encode(self.models.vae, frames_3THW[None]).to(self.dtype)
        mask_T = torch.zeros(num_frames, device=self.device, dtype=self.dtype)
        mask_T[known] = 1
        # The first latent frame stands for one frame only, which is repeated to fill its mask channels.
        mask_t4 = torch.cat([mask_T[:1].repeat(MASK_CHANNELS - 1), mask_T]).view(-1, MASK_CHANNELS)
        size = (1, MASK_CHANNELS, len(mask_t4), height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
        mask_BCthw = mask_t4.T[None, :, :, None, None].expand(size)
        return torch.cat([mask_BCthw, latents_BCthw], dim=1)


def check_inputs(inputs: Sequence[str], in_channels: int) -> None:
    """Refuse inputs that do not fit a DiT of so many input channels.

    Raises:
        RewardFLError: they do not (BadConfiguration, exit code 78).
    """
    image_channels = in_channels - LATENT_CHANNELS
    if image_channels not in (0, MASK_CHANNELS + LATENT_CHANNELS):
        raise _bad_inputs(inputs, f"the DiT takes {image_channels} image channels, which no known input makes.")
    if bool(image_channels) != ("input_image" in inputs):
        wants = "needs input_image" if image_channels else "takes no image"
        raise _bad_inputs(inputs, f"the DiT {wants}.")


def _bad_inputs(inputs: Sequence[str], problem: str) -> RewardFLError:
    """Return the error of inputs that do not fit the model."""
    return RewardFLError(
        Reason.BAD_CONFIGURATION,
        f"training.extra_inputs={','.join(inputs)!r}: {problem}",
        "Use input_image (and end_image with it) for Wan2.2-I2V-A14B, and nothing for a text-to-video model.",
        ExitCode.BAD_CONFIGURATION,
    )
