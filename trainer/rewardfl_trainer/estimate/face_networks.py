"""The two networks of antelopev2 as shapes: SCRFD at 10 GFLOPs and ArcFace's IResNet-100, for when their files are not at hand.

Layers and widths are those of insightface (`detection/scrfd/configs/scrfd/scrfd_10g_bnkps.py` and
`recognition/arcface_torch/backbones/iresnet.py`), batch norms folded into convolutions where the ONNX files fold them. Built to
be counted, never to be trained or run on pictures.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..rewards.alignment import ARCFACE_TEMPLATE_52
from ..rewards.detection import ANCHORS_PER_POSITION, OUTPUT_CHANNELS, FaceDetector, Faces, letterbox
from ..rewards.detection import FRAMES_PER_CALL as DETECTOR_FRAMES
from ..rewards.face import FaceReward
from ..rewards.recognition import FaceRecogniser

STEM_CHANNELS = (28, 28, 56)
STAGE_CHANNELS = (56, 88, 88, 224)
STAGE_BLOCKS = (3, 4, 2, 3)
NECK_CHANNELS = 56
HEAD_CHANNELS = 80
HEAD_LAYERS = 3

ARCFACE_CHANNELS = (64, 128, 256, 512)
ARCFACE_BLOCKS = (3, 13, 30, 3)
ARCFACE_GRID = 7
EMBEDDING = 512


def antelopev2() -> FaceReward:
    """Return a face reward with networks of antelopev2's sizes. It finds a face in every frame."""
    return FaceReward(FaceEverywhere(Detector()), FaceRecogniser(Recogniser()))


class FaceEverywhere(FaceDetector):
    """Runs its network as the detector does, and answers that the face fills the frame: shapes hold no faces to find."""

    @torch.no_grad()
    def forward(self, frames_F3HW: Tensor) -> Faces:
        """Return the whole frame as the face of every frame."""
        for frames in torch.split(frames_F3HW, DETECTOR_FRAMES):
            letterboxed_F3SS, _ = letterbox(frames.to(self.anchor_centers_A2))
            self.decode(letterboxed_F3SS)
        count = len(frames_F3HW)
        boxes_F4, scores_F = frames_F3HW.new_zeros(count, 4), frames_F3HW.new_ones(count)
        points_F52 = torch.tensor(ARCFACE_TEMPLATE_52).to(frames_F3HW).expand(count, -1, -1)
        return Faces(boxes_F4, points_F52, scores_F, scores_F.bool())


def _conv(channels_in: int, channels_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, stride, padding=size // 2)


class _Residual(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(channels_in, channels, stride=stride), _conv(channels, channels)
        self.shortcut = nn.Identity() if channels_in == channels and stride == 1 else _conv(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        return torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))


class Detector(nn.Module):
    """SCRFD-10GF: residual backbone, a feature pyramid of three strides, one head for each."""

    def __init__(self) -> None:
        super().__init__()
        stem = [_conv(a, b, stride=2 if a == 3 else 1) for a, b in pairwise((3, *STEM_CHANNELS))]
        self.stem = nn.Sequential(*(nn.Sequential(layer, nn.ReLU()) for layer in stem), nn.MaxPool2d(2))
        widths = pairwise((STEM_CHANNELS[-1], *STAGE_CHANNELS))
        self.stages = nn.ModuleList(
            nn.Sequential(_Residual(a, b, 1 if number == 0 else 2), *(_Residual(b, b, 1) for _ in range(blocks - 1)))
            for number, ((a, b), blocks) in enumerate(zip(widths, STAGE_BLOCKS, strict=True))
        )
        self.lateral = nn.ModuleList(_conv(channels, NECK_CHANNELS, 1) for channels in STAGE_CHANNELS[1:])
        self.merge = nn.ModuleList(_conv(NECK_CHANNELS, NECK_CHANNELS) for _ in STAGE_CHANNELS[1:])
        self.heads = nn.ModuleList(self._head() for _ in STAGE_CHANNELS[1:])

    @staticmethod
    def _head() -> nn.ModuleList:
        widths = (NECK_CHANNELS, *[HEAD_CHANNELS] * (HEAD_LAYERS - 1))
        layers = [nn.Sequential(_conv(width, HEAD_CHANNELS), nn.ReLU()) for width in widths]
        outputs = [_conv(HEAD_CHANNELS, ANCHORS_PER_POSITION * channels) for channels in OUTPUT_CHANNELS]
        return nn.ModuleList([nn.Sequential(*layers), *outputs])

    def forward(self, inputs_13SS: Tensor) -> list[Tensor]:
        """Return scores, boxes and points of every stride, each [anchors, channels], as antelopev2's file does."""
        features, x = [], self.stem(inputs_13SS)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        pyramid = [lateral(feature) for lateral, feature in zip(self.lateral, features[1:], strict=True)]
        for upper in (1, 0):
            pyramid[upper] = pyramid[upper] + functional.interpolate(pyramid[upper + 1], scale_factor=2.0)
        merged = [merge(level) for merge, level in zip(self.merge, pyramid, strict=True)]
        by_stride = [self._outputs(head, level) for head, level in zip(self.heads, merged, strict=True)]
        return [outputs[kind] for kind in range(len(OUTPUT_CHANNELS)) for outputs in by_stride]

    def _outputs(self, head: nn.Module, level: Tensor) -> list[Tensor]:
        shared, *outputs = head.children()
        x = shared(level)
        maps = [output(x) for output in outputs]
        return [m.permute(2, 3, 0, 1).reshape(-1, channels) for m, channels in zip(maps, OUTPUT_CHANNELS, strict=True)]


class _ArcFaceBlock(nn.Module):
    """Batch norm, two convolutions with a PReLU between, around a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(channels_in), nn.PReLU(channels)
        self.first, self.second = _conv(channels_in, channels), _conv(channels, channels, stride=stride)
        self.shortcut = nn.Identity() if stride == 1 else _conv(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut."""
        result: Tensor = self.second(self.relu(self.first(self.norm(x)))) + self.shortcut(x)
        return result


class Recogniser(nn.Module):
    """IResNet-100: 49 residual blocks in four stages, then one linear layer over what is left of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, ARCFACE_CHANNELS[0]), nn.PReLU(ARCFACE_CHANNELS[0]))
        blocks: list[nn.Module] = []
        for (a, b), count in zip(pairwise((ARCFACE_CHANNELS[0], *ARCFACE_CHANNELS)), ARCFACE_BLOCKS, strict=True):
            blocks += [_ArcFaceBlock(a, b, 2), *(_ArcFaceBlock(b, b, 1) for _ in range(count - 1))]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(ARCFACE_CHANNELS[-1])
        self.embed = nn.Linear(ARCFACE_CHANNELS[-1] * ARCFACE_GRID**2, EMBEDDING)

    def forward(self, crops_F3SS: Tensor) -> Tensor:
        """Return embeddings."""
        embeddings_FE: Tensor = self.embed(self.norm(self.blocks(self.stem(crops_F3SS))).flatten(1))
        return embeddings_FE
