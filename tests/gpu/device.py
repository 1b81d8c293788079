"""The device under test (REWARDFL_TEST_DEVICE, default cpu), what is run on it, and the figures that the tests found."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.conditioning import Conditioner
from rewardfl_trainer.data import VideoDataset, load_rows
from rewardfl_trainer.feedback import RewardFeedback
from rewardfl_trainer.models import DTYPES, load_models
from rewardfl_trainer.preparation import Preparer
from rewardfl_trainer.rewards.composition import Rewards
from rewardfl_trainer.rollout import Rollout
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import make_trainable

DEVICE = torch.device(os.environ.get("REWARDFL_TEST_DEVICE", "cpu"))
CPU = torch.device("cpu")
IS_GPU = DEVICE.type == "cuda"
DTYPE = "bf16" if IS_GPU else "fp32"
"""What production computes in."""


@dataclass
class Figure:
    """A line of the table."""

    what: str
    value: float
    unit: str


@dataclass
class Figures:
    """What was measured, for people: nothing passes or fails by it."""

    lines: list[Figure] = field(default_factory=list)

    def add(self, what: str, value: float, unit: str = "s") -> None:
        self.lines.append(Figure(what, value, unit))

    def table(self) -> list[str]:
        width = max((len(line.what) for line in self.lines), default=0)
        return [f"{line.what:<{width}}  {line.value:>10.3f} {line.unit}" for line in self.lines]

    def write(self, folder: Path) -> None:
        machine = torch.cuda.get_device_name() if IS_GPU else "CPU"
        content = {"device": machine, "torch": torch.__version__, "figures": [asdict(line) for line in self.lines]}
        (folder / "gpu.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


FIGURES = Figures()


def seconds(function: Callable[[], Any], repeat: int = 3) -> float:
    """Return the median seconds of `function` after one call that warms up."""
    times = []
    for _ in range(repeat + 1):
        finish()
        started = time.perf_counter()
        function()
        finish()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[repeat // 2]


def finish() -> None:
    """Wait for the device."""
    if IS_GPU:
        torch.cuda.synchronize()


def error(found: Tensor, expected: Tensor) -> float:
    """Return |found - expected| / |expected|; nan stays nan."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


@dataclass(frozen=True)
class Sample:
    """What a training sample gave."""

    loss: float
    gradient: Tensor
    """Of all trained parameters, flat, fp32 on the CPU."""

    @property
    def norm(self) -> float:
        return float(self.gradient.norm())


def sample(config: TrainerConfig, device: torch.device, lora_b: float = 0.0) -> Sample:
    """Return loss and gradient of the first row, with every network on `device`, without DeepSpeed and caches.

    Args:
        lora_b: what the LoRA's second factors are set to, instead of the zeros that training begins with.
    """
    parameters = config.training
    models, plan = load_models(parameters, device), Plan.of(parameters)
    trainable = make_trainable(models, parameters, plan)
    for name, parameter in trainable.parameters():
        if "lora_B" in name:
            parameter.data.fill_(lora_b)
    conditioner = Conditioner(models, parameters.extra_input_names, DTYPES[parameters.dtype], device)
    rewards = Rewards.load(parameters, device)
    dataset = VideoDataset(load_rows(Path(config.dataset)), parameters)
    preparer = Preparer(dataset, conditioner, rewards, parameters, device)
    feedback = RewardFeedback(Rollout(models, trainable, plan, parameters), preparer, rewards, trainable, parameters)
    loss, outcome = feedback.loss(preparer(0), visit=0)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for _, parameter in trainable.parameters() if parameter.grad is not None]
    return Sample(outcome.loss, torch.cat([gradient.flatten().float().cpu() for gradient in gradients]))
