"""The three face networks at toy size, each written once and run twice: by torch for training, by a graph builder for ONNX.

`run(ops, x)` composes a handful of operations; `TorchOps` computes them, `onnx_graph.OnnxOps` writes them down. Inputs and
outputs are those of insightface's antelopev2 files. The module must not train and must not touch files.

Shapes: N images, H W pixels, C channels, A anchors of a stride (row-major positions, N, then the two anchors of a position).
"""

from typing import Any, Final, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES: Final = (8, 16, 32)
ANCHORS: Final = 2
DETECTOR_WIDTHS: Final = (24, 48, 64)
DETECTOR_DILATIONS: Final = (1, 2, 4, 1)
RECOGNISER_WIDTHS: Final = (32, 64, 96)
EMBEDDING: Final = 512
LANDMARKS: Final = 106


class Ops(Protocol):
    """What a network may be made of."""

    def conv(self, layer: nn.Conv2d, x: Any) -> Any:
        """Convolve."""

    def relu(self, x: Any) -> Any:
        """Rectify."""

    def add(self, x: Any, y: Any) -> Any:
        """Add."""

    def linear(self, layer: nn.Linear, x: Any) -> Any:
        """Flatten from the second dimension on and multiply."""

    def rows(self, x: Any, columns: int) -> Any:
        """N C H W to rows in the order H W N C, `columns` numbers each: SCRFD's outputs have no batch axis."""

    def sigmoid(self, x: Any) -> Any:
        """Logistic function."""


class TorchOps:
    """Computes."""

    def conv(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        """Convolve."""
        return cast(Tensor, layer(x))

    def relu(self, x: Tensor) -> Tensor:
        """Rectify."""
        return F.relu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Add."""
        return x + y

    def linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        """Flatten and multiply."""
        return cast(Tensor, layer(x.flatten(1)))

    def rows(self, x: Tensor, columns: int) -> Tensor:
        """Rows in the order H W N C."""
        return x.permute(2, 3, 0, 1).reshape(-1, columns)

    def sigmoid(self, x: Tensor) -> Tensor:
        """Logistic function."""
        return x.sigmoid()


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut; the second starts at zero."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def run(self, ops: Ops, x: Any) -> Any:
        """Compose."""
        return ops.relu(ops.add(x, ops.conv(self.second, ops.relu(ops.conv(self.first, x)))))


class Detector(nn.Module):
    """SCRFD's form: per stride, sigmoid scores, box distances and point offsets, the last two in units of the stride.

    Input N 3 H W, RGB, (value - 127.5) / 128; nine outputs: scores of strides 8, 16, 32, then boxes, then points.
    """

    columns: Final = (1, 4, 10)

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = DETECTOR_WIDTHS
        self.stem = nn.Conv2d(3, narrow, 8, stride=8)
        self.down16 = nn.Conv2d(narrow, middle, 3, stride=2, padding=1)
        self.down32 = nn.Conv2d(middle, wide, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Residual(wide, dilation) for dilation in DETECTOR_DILATIONS)
        self.heads = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, ANCHORS * columns, 1) for width in DETECTOR_WIDTHS) for columns in self.columns
        )
        for head in cast(nn.ModuleList, self.heads[0]):
            nn.init.constant_(cast(Tensor, head.bias), -3.0)

    def run(self, ops: Ops, x: Any) -> list[Any]:
        """Compose the nine outputs."""
        level8 = ops.relu(ops.conv(self.stem, x))
        level16 = ops.relu(ops.conv(self.down16, level8))
        level32 = ops.relu(ops.conv(self.down32, level16))
        for block in self.blocks:
            level32 = cast(Residual, block).run(ops, level32)
        outputs = []
        for columns, heads in zip(self.columns, self.heads, strict=True):
            for head, level in zip(cast(nn.ModuleList, heads), (level8, level16, level32), strict=True):
                rows = ops.rows(ops.conv(cast(nn.Conv2d, head), level), columns)
                outputs.append(ops.sigmoid(rows) if columns == 1 else rows)
        return outputs

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """The nine outputs."""
        return self.run(TorchOps(), images_N3HW)


class Recogniser(nn.Module):
    """ArcFace's form: N 3 112 112, RGB, (value - 127.5) / 127.5, to N 512 (not normalised)."""

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = RECOGNISER_WIDTHS
        self.stem = nn.Conv2d(3, narrow, 8, stride=4, padding=2)
        self.block1 = Residual(narrow)
        self.down1 = nn.Conv2d(narrow, middle, 3, stride=2, padding=1)
        self.block2 = Residual(middle)
        self.down2 = nn.Conv2d(middle, wide, 3, stride=2, padding=1)
        self.block3 = Residual(wide)
        self.squeeze = nn.Conv2d(wide, 16, 1)
        self.embed = nn.Linear(16 * 7 * 7, EMBEDDING)

    def run(self, ops: Ops, x: Any) -> list[Any]:
        """Compose the embedding."""
        x = self.block1.run(ops, ops.relu(ops.conv(self.stem, x)))
        x = self.block2.run(ops, ops.relu(ops.conv(self.down1, x)))
        x = self.block3.run(ops, ops.relu(ops.conv(self.down2, x)))
        return [ops.linear(self.embed, ops.conv(self.squeeze, x))]

    def forward(self, crops_N3SS: Tensor) -> Tensor:
        """Embed."""
        return cast(Tensor, self.run(TorchOps(), crops_N3SS)[0])


class Landmarks(nn.Module):
    """The form of insightface's 2d106det: N 3 192 192, RGB in 0..255, to N 212 (x y of 106 points in [-1, 1])."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, stride=16)
        self.embed = nn.Linear(8 * 12 * 12, 2 * LANDMARKS)
        with torch.no_grad():
            self.stem.weight.div_(127.5)

    def run(self, ops: Ops, x: Any) -> list[Any]:
        """Compose the points."""
        return [ops.linear(self.embed, ops.relu(ops.conv(self.stem, x)))]

    def forward(self, crops_N3SS: Tensor) -> Tensor:
        """Regress the points."""
        return cast(Tensor, self.run(TorchOps(), crops_N3SS)[0])
