"""Time and memory: a step of the mid-size family beside its estimate, the preflight's question, and blocks of A14B's width."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.models.wan_video_dit import WanModel
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.environment import Process
from rewardfl_trainer.estimate.fit import needed_bytes
from rewardfl_trainer.estimate.networks import A14B_HASH
from rewardfl_trainer.estimate.preflight import check_memory, compare
from rewardfl_trainer.estimate.result import Estimate, Estimator
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.run import assemble
from rewardfl_trainer.train import train_batch
from rewardfl_trainer.wan_dit import TIME_MODULES, predict_velocity
from tests.benchmarks import midsize
from tests.distributed.conftest import maker
from tests.gpu.conftest import on_device
from tests.gpu.device import DEVICE, FIGURES, IS_GPU, error, finish, seconds
from tests.unit.small_networks import DIT_ARGUMENTS, random

pytestmark = pytest.mark.slow

GIGA = 1e9
STEPS = 3 if IS_GPU else 1
VIDEO = {"num_frames": 33, "height": 512, "width": 512} if IS_GPU else {"num_frames": 5, "height": 48, "width": 48}
PLAN = {} if IS_GPU else {"num_inference_steps": 2, "mid_timestep": 1, "final_timestep": 1}
LEAST_SHARE = 0.6
"""Of the estimate that a run must really need: an estimate far too high would refuse runs that fit."""


@pytest.fixture(scope="module")
def config(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainerConfig:
    """A run of the mid-size family."""
    folder = tmp_path_factory.mktemp("mid-size")
    midsize.write(tiny_family, folder / "family")
    make = on_device(maker(folder / "family", folder))
    return make(num_sample_videos=0, max_steps=STEPS + 1, use_gradient_checkpointing=True, **VIDEO, **PLAN)


@pytest.fixture(scope="module")
def estimator(config: TrainerConfig) -> Estimator:
    return Estimator.of(config.training)


@pytest.fixture(scope="module")
def estimate(config: TrainerConfig, estimator: Estimator) -> Estimate:
    return estimator.estimate(config, world_size=1)


def test_a_mid_size_step_needs_no_more_memory_than_estimated(config: TrainerConfig, estimate: Estimate, process: Process) -> None:
    run = assemble(config, process)
    first, *others = run.order.batches()
    train_batch(run, first)
    run.stopwatch.read()
    if IS_GPU:
        torch.cuda.reset_peak_memory_stats(DEVICE)
    total: dict[str, float] = {}
    for batch in others:
        _, report = train_batch(run, batch)
        assert report.applied
        for name, value in run.stopwatch.read().items():
            total[name] = total.get(name, 0.0) + value
    for name, value in total.items():
        FIGURES.add(f"mid-size step: {name.removeprefix('seconds_')}", value / len(others))
    FIGURES.add("mid-size step: seconds in all", sum(total.values()) / len(others))
    FIGURES.add("mid-size step: estimated peak", estimate.peak_bytes / GIGA, "GB")
    if IS_GPU:
        measured = torch.cuda.max_memory_allocated(DEVICE)
        FIGURES.add("mid-size step: measured peak", measured / GIGA, "GB")
        FIGURES.add("mid-size step: reserved", torch.cuda.max_memory_reserved(DEVICE) / GIGA, "GB")
        assert LEAST_SHARE * estimate.peak_bytes < measured < needed_bytes(estimate)


def test_preflight_lets_the_run_begin_on_this_device(config: TrainerConfig, estimator: Estimator, process: Process) -> None:
    if IS_GPU:
        check_memory(config, process)
    else:
        compare(estimator, config, process.world_size, psutil.virtual_memory().total)


@dataclass
class Blocks:
    """A transformer of a few blocks and its inputs."""

    dit: Any
    latents: Tensor
    context: Tensor
    image: Tensor

    def velocity(self, how: Checkpointing) -> Tensor:
        return predict_velocity(self.dit, self.latents, torch.tensor([750.0]), self.context, self.image, how)

    def gradient(self, how: Checkpointing) -> Tensor:
        (gradient,) = torch.autograd.grad(self.velocity(how).float().square().mean(), self.latents)
        return gradient


@pytest.fixture(scope="module")
def blocks(process: Process) -> Iterator[Blocks]:
    """On a GPU four blocks of A14B's width on the 18,900 tokens of a 480x480x81 video; random weights."""
    dtype = torch.bfloat16 if IS_GPU else torch.float32
    arguments: dict[str, Any] = {**DIT_ARGUMENTS, "num_layers": 4}
    size = (21, 60, 60) if IS_GPU else (3, 8, 8)
    if IS_GPU:
        arguments = next(config["extra_kwargs"] for config in MODEL_CONFIGS if config["model_hash"] == A14B_HASH)
        arguments = {**arguments, "num_layers": 4}
    with process.device:
        torch.manual_seed(0)
        dit = WanModel(**arguments).requires_grad_(False).eval().to(dtype)
    for name in TIME_MODULES:
        getattr(dit, name).float()
    inputs = [random(1, 16, *size), random(1, 512, arguments["text_dim"]), random(1, 20, *size)]
    latents, context, image = (tensor.to(process.device, dtype) for tensor in inputs)
    yield Blocks(dit, latents.requires_grad_(), context, image)
    if IS_GPU:
        torch.cuda.empty_cache()


def test_blocks_recomputed_and_offloaded_give_the_same_gradient(blocks: Blocks) -> None:
    forms = {
        "kept": Checkpointing(enabled=False),
        "recomputed": Checkpointing(),
        "recomputed but for attention": Checkpointing(attention_every=1),
        "offloaded": Checkpointing(offload=True),
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        blocks.velocity(forms["kept"])
    with torch.no_grad():
        forward = seconds(lambda: blocks.velocity(forms["kept"]))
    FIGURES.add("4 blocks, forward", forward)
    FIGURES.add("4 blocks, forward: rate", counter.get_total_flops() / forward / 1e12, "TFLOP/s")
    expected = blocks.gradient(forms["kept"])
    assert float(expected.float().norm()) > 0
    for name, how in forms.items():
        assert error(blocks.gradient(how), expected) < (0.02 if IS_GPU else 1e-6), name
        FIGURES.add(f"4 blocks, forward and backward, {name}", seconds(lambda how=how: blocks.gradient(how)))  # type: ignore[misc]
        if IS_GPU:
            torch.cuda.reset_peak_memory_stats(DEVICE)
            blocks.gradient(how)
            finish()
            FIGURES.add(f"4 blocks, peak, {name}", torch.cuda.max_memory_allocated(DEVICE) / GIGA, "GB")


def test_attention_in_bf16_is_a_fused_kernel(process: Process) -> None:
    query = random(1, 2, 256, 128).to(process.device, torch.bfloat16)
    chosen = SDPBackend(torch._fused_sdp_choice(query, query, query))
    FIGURES.add(f"attention by {chosen.name}", 1.0, "")
    assert chosen not in (SDPBackend.ERROR, SDPBackend.MATH)
