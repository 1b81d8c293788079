"""What is set before libraries look, and a process that finds no GPU."""

import os
from pathlib import Path

import pytest
import torch

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment

TRAINING = {"model_paths": ["-"], "reward_model_path": "-", "tokenizer_path": "-", "min_timestep_boundary": 0.9}


def config(device: str, folder: Path) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {"dataset": "-", "output": "-", "device": device, "work_dir": str(folder), "training": TRAINING}
    )


@pytest.fixture(autouse=True)
def _environment_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*environment.ALLOCATOR_VARIABLES, *environment.SINGLE_PROCESS, "DS_ACCELERATOR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))


def test_torch_takes_the_settings_of_the_allocator_which_only_a_gpu_needs(tmp_path: Path) -> None:
    environment.prepare(config("cpu", tmp_path))
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    environment.prepare(config("cuda", tmp_path))
    torch._C._accelerator_setAllocatorSettings(os.environ["PYTORCH_ALLOC_CONF"])
    with pytest.raises(ValueError, match="Unrecognized"):
        torch._C._accelerator_setAllocatorSettings("no_such_setting:True")


@pytest.mark.parametrize("name", environment.ALLOCATOR_VARIABLES)
def test_settings_of_the_allocator_that_a_user_gives_stay_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, name, "max_split_size_mb:64")
    environment.prepare(config("cuda", tmp_path))
    assert {os.environ.get(variable) for variable in environment.ALLOCATOR_VARIABLES} == {"max_split_size_mb:64", None}


def test_a_process_without_a_gpu_of_its_own_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = torch.cuda.device_count()
    for name, value in environment.SINGLE_PROCESS.items():
        monkeypatch.setitem(os.environ, name, value)
    monkeypatch.setitem(os.environ, "LOCAL_RANK", str(count))
    with pytest.raises(RewardFLError, match=f"process {count} of this pod has no GPU: .* sees {count}") as caught:
        environment.join_process_group(config("cuda", tmp_path))
    assert caught.value.reason is Reason.TRAINER_FAILED
    assert "nvidia-smi" in caught.value.hint
