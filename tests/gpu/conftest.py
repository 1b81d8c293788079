"""The tiny family, configurations on the device under test, and the figures at the end."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment
from rewardfl_trainer.environment import Process
from tests.distributed.conftest import MakeConfig, maker, tiny_family, warm_server  # noqa: F401 - fixtures
from tests.gpu.device import DEVICE, DTYPE, FIGURES


def on_device(make: MakeConfig) -> MakeConfig:
    """Return a function that makes a configuration as `maker`'s does, for the device under test and in its precision."""

    def make_for_device(rows: int = 1, **given: Any) -> TrainerConfig:
        config = make(rows, **{"dtype": DTYPE, **given})
        return config.model_copy(update={"device": DEVICE.type})

    return make_for_device


@pytest.fixture
def make_config(tiny_family: Path, tmp_path: Path) -> MakeConfig:  # noqa: F811
    return on_device(maker(tiny_family, tmp_path))


@pytest.fixture(scope="module")
def make_module_config(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:  # noqa: F811
    return on_device(maker(tiny_family, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="package")
def process(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:  # noqa: F811
    """This process as the only rank of a group, on the device under test."""
    known = dict(os.environ)
    config = on_device(maker(tiny_family, tmp_path_factory.mktemp("process")))()
    environment.prepare(config)
    yield environment.join_process_group(config)
    import deepspeed  # reads the prepared environment

    deepspeed.comm.destroy_process_group()  # torch's would leave DeepSpeed with groups of a world that is gone
    os.environ.clear()
    os.environ.update(known)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was measured, and write it to $OUT where that is set."""
    if not FIGURES.lines:
        return
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    terminalreporter.section(f"figures on {name}, torch {torch.__version__}")
    for line in FIGURES.table():
        terminalreporter.line(line)
    if folder := os.environ.get("OUT"):
        FIGURES.write(Path(folder))
