"""The tiny family on disk, once for all tests, and configurations of runs on it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment, tiny
from rewardfl_trainer.environment import Process
from tests.distributed import warm

MakeConfig = Callable[..., TrainerConfig]


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny.write(folder)
    return folder


@pytest.fixture(scope="session")
def warm_server(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server that `warm.start` forks from."""
    warm.start_server(maker(tiny_family, tmp_path_factory.mktemp("server"))())


@pytest.fixture
def make_config(tiny_family: Path, tmp_path: Path) -> MakeConfig:
    """Return a function that makes a configuration: see `maker`."""
    return maker(tiny_family, tmp_path)


@pytest.fixture(scope="module")
def make_module_config(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """The same, for the runs that several tests look at."""
    return maker(tiny_family, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="package")
def process(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """This process as the only rank of a group, which is left before another package makes one."""
    known = dict(os.environ)
    config = maker(tiny_family, tmp_path_factory.mktemp("process"))()
    environment.prepare(config)
    yield environment.join_process_group(config)
    import deepspeed  # reads the prepared environment

    deepspeed.comm.destroy_process_group()  # torch's would leave DeepSpeed with groups of a world that is gone
    os.environ.clear()
    os.environ.update(known)


def maker(tiny_family: Path, folder: Path) -> MakeConfig:
    """Return a function that makes a configuration: `rows` of the dataset, a name, a DeepSpeed section, training by name."""

    def make(rows: int = 2, *, name: str = "run", deepspeed: dict[str, Any] | None = None, **training: object) -> TrainerConfig:
        dataset = folder / f"dataset-{rows}"
        if not dataset.exists():
            (dataset / "videos").mkdir(parents=True)
            lines = (tiny_family / "dataset" / "metadata.csv").read_text(encoding="utf-8").splitlines()[: rows + 1]
            (dataset / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
            for line in lines[1:]:
                shutil.copy(tiny_family / "dataset" / line.split(",")[0], dataset / "videos")
        given: dict[str, object] = {
            "model_paths": str(tiny_family / "wan22_paths.json"),
            "tokenizer_path": str(tiny_family / "Wan2.2-I2V-A14B" / "google" / "umt5-xxl"),
            "reward_model_path": str(tiny_family / "antelopev2"),
            "min_timestep_boundary": 0.9,
            "trainable_models": "dit2",
            "lora_base_model": "dit2",
            "lora_rank": 4,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "num_frames": 9,
            "dtype": "fp32",
            "use_gradient_checkpointing": False,
            "num_sample_videos": 0,
        }
        config: dict[str, object] = {
            "name": name,
            "device": "cpu",
            "dataset": str(dataset),
            "output": str(folder / name / "output"),
            "work_dir": str(folder / name / "work"),
            "cache_dir": str(folder / "cache"),
            "training": {**given, **training},
        }
        if deepspeed is not None:
            config["deepspeed"] = deepspeed
        return TrainerConfig.model_validate(config)

    return make
