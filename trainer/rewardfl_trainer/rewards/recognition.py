"""Embeds aligned faces with ArcFace (insightface's glintr100.onnx), differentiably.

Shapes: F faces, E the embedding's 512 numbers.
"""

from pathlib import Path
from typing import Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from .onnx_network import find_model, load_network, quiet

FILE_NAME = "glintr100.onnx"

ChannelOrder = Literal["rgb", "bgr"]


class FaceRecogniser(nn.Module):
    """ArcFace. Its own input, (value - 127.5) / 127.5, is just the range [-1, 1]."""

    def __init__(self, network: nn.Module, channel_order: ChannelOrder = "rgb") -> None:
        super().__init__()
        self.network = network
        self.channel_order = channel_order

    @classmethod
    def load(cls, folder: Path, channel_order: ChannelOrder = "rgb") -> Self:
        """Read the recogniser of `folder`. glintr100 takes RGB; `bgr` is for comparisons with ROLL, which feeds it that.

        Raises:
            RewardFLError: the file is missing or is not a network with one output (exit code 66).
        """
        return cls(load_network(find_model(folder, FILE_NAME), num_outputs=1), channel_order)

    def forward(self, crops_F3SS: Tensor) -> Tensor:
        """Return L2-normalised embeddings_FE of 112x112 RGB crops in [-1, 1]."""
        return functional.normalize(self.embed(crops_F3SS), dim=-1)

    def embed(self, crops_F3SS: Tensor) -> Tensor:
        """Return the embeddings as the network gives them, of any length."""
        inputs_F3SS = crops_F3SS.flip(1) if self.channel_order == "bgr" else crops_F3SS
        with quiet():
            embeddings_FE: Tensor = self.network(inputs_F3SS)
        return embeddings_FE
