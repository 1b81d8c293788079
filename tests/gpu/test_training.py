"""A training run through the production entry: torchrun, DeepSpeed, both phases, checkpoints; and its resumption."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.environment import Process
from tests.distributed import warm
from tests.distributed.conftest import MakeConfig
from tests.gpu.device import CPU, DEVICE, FIGURES, IS_GPU, Sample, sample

pytestmark = pytest.mark.slow

RUN = {
    "max_steps": 2,
    "save_steps": 1,
    "num_frames": 5,
    "max_pixels": 64 * 64,
    "num_inference_steps": 4,
    "mid_timestep": 2,
    "final_timestep": 3,
    "num_sample_videos": 1,
    "use_gradient_checkpointing": True,
    "use_gradient_checkpointing_offload": True,
}
SECONDS = 300

Run = Callable[[TrainerConfig], TrainerConfig]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trains as a configuration says, in a process of its own: with as many threads each time, which decide the rounding."""

    def run(config: TrainerConfig) -> TrainerConfig:
        folder = tmp_path_factory.mktemp("launched")
        path, log = folder / "config.yaml", folder / "log"
        path.write_text(config.dump(), encoding="utf-8")
        try:
            if IS_GPU:
                launch(path, log)
            else:
                request.getfixturevalue("warm_server")
                warm.finish(warm.start_ranks(1, warm.train, path, log=log), SECONDS)
        except (AssertionError, subprocess.SubprocessError):
            print(log.read_text(encoding="utf-8")[-4000:])
            raise
        return config

    return run


@pytest.fixture(scope="module")
def trained(run: Run, make_module_config: MakeConfig) -> TrainerConfig:
    return run(make_module_config(name="launched", **RUN))


def launch(config: Path, log: Path) -> None:
    """Train as a pod does: torchrun, in processes of their own. (A CPU's rank is forked: tests/distributed/test_launch.py.)"""
    torchrun = ["rewardfl_trainer.launch", "--standalone", "--nproc-per-node=1", "-m", "rewardfl_trainer.train"]
    environment = warm.environment_of_a_child(TERMINATION_LOG=str(log.with_name("termination-log")))
    with log.open("wb") as file:
        command = [sys.executable, "-m", *torchrun, "--config", str(config)]
        subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=SECONDS, check=True)


@pytest.fixture(scope="module")
def expected(make_module_config: MakeConfig) -> Sample:
    """The run's first sample on a CPU in fp32."""
    return sample(make_module_config(**{**RUN, "dtype": "fp32", "use_gradient_checkpointing": False}), CPU)


def metrics(config: TrainerConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output) / "metrics.jsonl").read_text().splitlines()]


def weights(config: TrainerConfig) -> dict[str, torch.Tensor]:
    paths = Path(config.output).glob("*.safetensors")
    return {f"{path.name}/{name}": tensor for path in paths for name, tensor in load_file(path).items()}


def test_two_steps_begin_with_the_loss_and_the_gradient_of_a_cpu_in_fp32(trained: TrainerConfig, expected: Sample) -> None:
    first, second = metrics(trained)
    # bf16 moves the generated face a little, and with it the score.
    assert first["loss"] == pytest.approx(expected.loss, abs=0.01 if IS_GPU else 1e-4)
    assert first["grad_norm"] == pytest.approx(expected.norm, rel=0.1 if IS_GPU else 1e-3)
    assert second["loss"] is not None
    assert second["loss"] != first["loss"]
    assert first["bad_steps"] == second["bad_steps"] == 0


def test_the_gradient_in_the_devices_precision_points_where_that_of_a_cpu_in_fp32_does(
    make_module_config: MakeConfig, process: Process, expected: Sample
) -> None:
    found = sample(make_module_config(**RUN), process.device)
    cosine = torch.nn.functional.cosine_similarity(found.gradient, expected.gradient, dim=0)
    assert float(cosine) > (0.98 if IS_GPU else 0.9999)


def test_the_run_says_where_its_seconds_and_memory_went(trained: TrainerConfig) -> None:
    last = metrics(trained)[-1]
    for part in ("prepare", "sample", "reference", "decode", "reward", "backward", "optimise"):
        assert last[f"seconds_{part}"] > 0
        FIGURES.add(f"tiny family, second step: {part}", last[f"seconds_{part}"])
    FIGURES.add("tiny family: peak memory", last["peak_memory_gb"], "GB")
    assert last["peak_memory_gb"] > 0
    if IS_GPU:
        assert last["peak_memory_gb"] < torch.cuda.get_device_properties(DEVICE).total_memory / 1e9


def test_a_resumed_run_ends_as_the_unbroken_one_did(trained: TrainerConfig, run: Run, make_module_config: MakeConfig) -> None:
    config = make_module_config(name="resumed", **RUN)
    checkpoint = Path(config.output) / "checkpoints" / "step-1"
    shutil.copytree(Path(trained.output) / "checkpoints" / "step-1", checkpoint)
    run(config)
    unbroken, resumed = metrics(trained), metrics(config)
    assert [line["step"] for line in resumed] == [1, 2]
    assert resumed[0] == unbroken[0]
    expected, found = weights(trained), weights(config)
    assert found.keys() == expected.keys() != set()
    for name, tensor in expected.items():
        # Some gradients on a GPU add up in no fixed order (grid_sample's, attention's), and AdamW divides by their size.
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2.5e-3 if IS_GPU else 0.0)
    assert resumed[1]["loss"] == pytest.approx(unbroken[1]["loss"], abs=0.02 if IS_GPU else 0.0)


def test_the_ranks_talk_as_in_production(process: Process) -> None:
    assert process.device.type == DEVICE.type
    assert distributed.get_backend() == ("nccl" if IS_GPU else "gloo")
    number = torch.ones(1, device=process.device)
    distributed.all_reduce(number)
    assert float(number) == distributed.get_world_size()
