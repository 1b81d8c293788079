"""Hand-made face networks for the tests of the rewards: the form of antelopev2's files, with weights whose answer is known.

The detector takes a red mark for the middle of a small face (stride 8) and a green mark for that of a big one (stride 16); the
face's points turn a little with the blue around it. The recogniser is random.
"""

import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewardfl_trainer.rewards.alignment import ARCFACE_TEMPLATE_52, CROP_SIZE
from rewardfl_trainer.rewards.detection import STRIDES

Form = Literal["batch_axis", "position_major", "frame_major", "static"]
FORMS: tuple[Form, ...] = ("batch_axis", "position_major", "frame_major", "static")
"""Outputs with a batch axis; without one, in the order of older and newer exporters; without one and for fixed sizes."""

HALF_SIZES = (100.0, 200.0, 300.0)
"""Half the size of a face of each stride, in pixels of the detector's 640x640 input."""
SHARPNESS = 6.0
DIM = 1.8
"""A black pixel has red - green - blue = 1, a red one nearly 3."""
KERNEL = 79
"""Pixels of the input over which the colour is averaged; wider than a mark, so that one position fits best."""
NEVER = -20.0


class MarkDetector(nn.Module):
    """Nine outputs in insightface's order."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        red, green, blue = image.split(1, dim=1)
        marks = (red - green - blue - DIM, green - red - blue - DIM, 0 * red - DIM)
        outputs: list[list[Tensor]] = [[], [], []]
        coarse = None
        for stride, mark, half_size in zip(reversed(STRIDES), reversed(marks), reversed(HALF_SIZES), strict=True):
            pooled = functional.avg_pool2d(functional.pad(mark, (KERNEL // 2,) * 4, value=-1.0), KERNEL, stride)
            tint = functional.avg_pool2d(blue, stride, stride)
            if coarse is not None:  # as a feature pyramid does; a resize to a size that depends on the input
                pooled = pooled + 0 * functional.interpolate(coarse, size=pooled.shape[2:], mode="nearest")
            coarse = pooled
            for kind, values in enumerate(self._heads(pooled, tint, half_size / stride)):
                outputs[kind].insert(0, values)
        return tuple(outputs[0] + outputs[1] + outputs[2])

    def _heads(self, pooled: Tensor, tint: Tensor, half_size: float) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, boxes and points of one stride; the first anchor finds, the second never does."""
        score = torch.cat((SHARPNESS * pooled, 0 * pooled + NEVER), dim=1)
        box = torch.cat([0 * pooled + half_size] * 8, dim=1)
        template = (torch.tensor(ARCFACE_TEMPLATE_52) / (CROP_SIZE / 2) - 1) * half_size
        turned = template.flip(1) * torch.tensor([-1.0, 1.0])
        points = template.reshape(1, 10, 1, 1) + 0.3 * (tint + 1) * turned.reshape(1, 10, 1, 1)
        return self._flat(score, 1).sigmoid(), self._flat(box, 4), self._flat(torch.cat((points, points), dim=1), 10)

    def _flat(self, values: Tensor, channels: int) -> Tensor:
        if self.form == "batch_axis":
            return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)
        order = (0, 2, 3, 1) if self.form == "frame_major" else (2, 3, 0, 1)
        return values.permute(*order).reshape(-1, channels)


def recogniser_network(seed: int = 0) -> nn.Module:
    """The layers of glintr100 at a toy size: convolutions, batch norms, PReLU, one linear layer."""
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 8), (8, 8), (8, 8), (8, 8)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.PReLU(outputs)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 7 * 7, 512), nn.BatchNorm1d(512))
    for name, tensor in network.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean")):
            fan_in = max(1, tensor[0].numel())
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
        elif name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    network.eval()
    faces = torch.stack([frame_with_marks(CROP_SIZE, CROP_SIZE, red=(56, 56), radius=20, seed=number) for number in range(32)])
    with torch.no_grad():  # centred, so that the embeddings of different faces point in different directions
        network[-1].running_mean.copy_(network[:-1](faces).mean(dim=0))
        network[-1].bias.zero_()
    return network


def export(network: nn.Module, example: Tensor, path: Path, outputs: list[str], dynamic: bool) -> None:
    """Write an ONNX file as insightface's exporters do (opset 11, tracing)."""
    axes = {"input.1": {0: "n", 2: "h", 3: "w"}, **{name: {0: "k"} for name in outputs}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            opset_version=11,
            dynamo=False,
            input_names=["input.1"],
            output_names=outputs,
            dynamic_axes=axes if dynamic else None,
        )


def write_detector(folder: Path, form: Form = "position_major") -> None:
    """Write scrfd_10g_bnkps.onnx."""
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    export(MarkDetector(form), torch.rand(1, 3, 640, 640), folder / "scrfd_10g_bnkps.onnx", names, dynamic=form != "static")


def write_recogniser(folder: Path) -> None:
    """Write glintr100.onnx."""
    export(recogniser_network(), torch.rand(1, 3, 112, 112), folder / "glintr100.onnx", ["embedding"], dynamic=True)


def frame_with_marks(
    height: int,
    width: int,
    *,
    red: tuple[int, int] | None = None,
    green: tuple[int, int] | None = None,
    radius: int | None = None,
    seed: int = 0,
) -> Tensor:
    """A dim frame 3HW in [-1, 1] of blurred colours, with square marks around (row, column)."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(1, 3, 8, 8, generator=generator) * 0.5 - 1
    frame = functional.interpolate(colours, (height, width), mode="bilinear")[0]
    radius = radius or max(height, width) // 20
    for channel, position in ((0, red), (1, green)):
        if position is not None:
            rows, columns = (slice(max(0, centre - radius), centre + radius + 1) for centre in position)
            frame[:, rows, columns] = -0.9
            frame[channel, rows, columns] = 0.95
    return frame
