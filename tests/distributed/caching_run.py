"""A rank of the cache tests: makes the first phase of a run, and writes down the names of the entries that it made."""

import json
import os
import signal
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import torch
from torch import distributed

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment, run
from rewardfl_trainer.environment import Process
from rewardfl_trainer.precompute import store
from rewardfl_trainer.precompute.store import Store
from tests.distributed import warm


def start(config: TrainerConfig, made: Path, dies_at_write: int | None = None, **variables: str) -> BaseProcess:
    """Start a rank; `variables` say which one, as torchrun does. None: a job of one.

    Args:
        made: file that it writes the entries' names to, as JSON.
        dies_at_write: the entry during whose writing it is killed: content in the file, but not under its name.
    """
    return warm.start(first_phase, config.dump(), made, dies_at_write, variables=variables)


def first_phase(config_text: str, result: Path, dies_at_write: int | None) -> None:
    """Run the first phase as `assemble` does, and end before training's networks are loaded."""
    import yaml

    config = TrainerConfig.model_validate(yaml.safe_load(config_text))
    environment.prepare(config)
    environment._become_single_process()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    node = int(os.environ.get("GROUP_RANK", "0"))
    process = Process(distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"), node)
    made: list[str] = []
    real_write, real_sync = Store.write, store.sync

    def write(self: Store, key: store.Key, tensors: object) -> None:
        made.append(self.path(key).name)
        real_write(self, key, tensors)  # type: ignore[arg-type]

    def sync(place: object) -> None:
        if len(made) == dies_at_write:
            os.kill(os.getpid(), signal.SIGKILL)
        real_sync(place)  # type: ignore[arg-type]

    def end_of_the_first_phase(*_arguments: object, **_keywords: object) -> NoReturn:
        result.write_text(json.dumps(made), encoding="utf-8")
        distributed.barrier()
        sys.exit()

    Store.write, store.sync = write, sync  # type: ignore[method-assign,assignment]
    run.load_models = end_of_the_first_phase
    run.assemble(config, process)
