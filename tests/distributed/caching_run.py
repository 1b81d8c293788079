"""A rank of the cache tests: makes the first phase of a run, and writes down the names of the entries that it made.

Its processes are forked from a server that has imported everything once; DeepSpeed, which only training needs, is left alone.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import diffsynth.models.wan_video_dit
import diffsynth.models.wan_video_text_encoder
import diffsynth.models.wan_video_vae  # noqa: F401 - imported once, in the server
import torch
from torch import distributed

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment, run
from rewardfl_trainer.environment import Process
from rewardfl_trainer.precompute import store
from rewardfl_trainer.precompute.store import Store


def start(config: TrainerConfig, made: Path, dies_at_write: int | None = None, **variables: str) -> BaseProcess:
    """Start a rank; `variables` say which one, as torchrun does. None: a job of one.

    Args:
        made: file that it writes the entries' names to, as JSON.
        dies_at_write: the entry during whose writing it is killed: content in the file, but not under its name.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([__name__])
    rank = server.Process(target=first_phase, args=(config.dump(), made, dies_at_write, variables))
    rank.start()
    return rank


def first_phase(config_text: str, result: Path, dies_at_write: int | None, variables: Mapping[str, str]) -> None:
    """Run the first phase as `assemble` does, and end before training's networks are loaded."""
    import yaml

    config = TrainerConfig.model_validate(yaml.safe_load(config_text))
    for name in (*environment.SINGLE_PROCESS, "MASTER_PORT", "GROUP_RANK"):
        os.environ.pop(name, None)
    os.environ.update(variables)
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
