"""Parts that do next to nothing, in place of those whose cost is counted elsewhere: their weights stay in memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..rewards.base import Reference, Reward, RewardResult
from ..rewards.composition import Part, Rewards
from ..wan_vae import SPATIAL_FACTOR


class _Decoder(nn.Module):
    """Makes one frame of a latent frame."""

    def forward(self, x_BC1hw: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> tuple[Tensor, list[Any], list[int]]:
        """Enlarge three channels."""
        frame_B3hw = x_BC1hw[:, :3].squeeze(2)
        return functional.interpolate(frame_B3hw, scale_factor=SPATIAL_FACTOR).unsqueeze(2), feat_cache, feat_idx


class _Model(nn.Module):
    """Has the parts of the VAE that decoding uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.encoder, self.decoder = nn.Identity(), nn.Identity(), _Decoder()
        self._feat_map: list[Any] = []

    def clear_cache(self) -> None:
        """Do nothing: no frame depends on another."""


class TrivialVae(nn.Module):
    """Takes the place of the VAE where only the transformer is of interest."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.scale = vae.scale
        self.model = _Model()
        self.unused = vae.model  # its weights are in memory all the same


class TrivialReward(Reward[Reference, RewardResult]):
    """Scores the brightness of a video. Takes the place of `rewards` where only the transformer is of interest."""

    reference_type = Reference

    def __init__(self, rewards: Rewards) -> None:
        super().__init__()
        self.unused = nn.ModuleList(part.reward for part in rewards.parts.values())
        self.freeze()

    def reference(self, video_B3THW: Tensor) -> Reference:
        """Return nothing: any video will do."""
        del video_B3THW
        return Reference()

    def forward(self, video_B3THW: Tensor, reference: Reference) -> RewardResult:
        """Return the mean of the pixels."""
        del reference
        frames_BT = video_B3THW.mean(dim=(1, 3, 4), dtype=torch.float32)
        return RewardResult(frames_BT.mean(dim=1), frames_BT.detach())


def trivial_rewards(rewards: Rewards) -> Rewards:
    """Return rewards that cost nothing but the memory of `rewards`."""
    return Rewards({"brightness": Part(TrivialReward(rewards))})
