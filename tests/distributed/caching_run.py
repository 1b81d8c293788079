"""A rank of the cache tests: makes the first phase of a run, and prints the names of the entries that it made.

`caching_run.py CONFIG [WRITES]`: with WRITES the process is killed while it writes that entry, before it is renamed. DeepSpeed is
left out, which only training needs and which takes seconds to import.
"""

import json
import os
import signal
import sys
from typing import NoReturn

import torch
from torch import distributed

from rewardfl_trainer import configuration, environment, run
from rewardfl_trainer.environment import Process
from rewardfl_trainer.precompute import store
from rewardfl_trainer.precompute.store import Store


def main(path: str, writes: int | None) -> None:
    config = configuration.load(path)
    environment.prepare(config)
    environment._become_single_process()
    distributed.init_process_group("gloo")
    process = Process(distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"), int(os.environ["GROUP_RANK"]))
    made: list[str] = []
    real_write, real_sync = Store.write, store._sync

    def write(self: Store, key: store.Key, tensors: object) -> None:
        made.append(self.path(key).name)
        real_write(self, key, tensors)  # type: ignore[arg-type]

    def sync(place: object) -> None:
        if len(made) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        real_sync(place)  # type: ignore[arg-type]

    def end_of_the_first_phase(*_arguments: object, **_keywords: object) -> NoReturn:
        print(json.dumps(made), flush=True)
        distributed.barrier()
        sys.exit()

    Store.write, store._sync = write, sync  # type: ignore[method-assign,assignment]
    run.load_models = end_of_the_first_phase  # type: ignore[assignment]
    run.assemble(config, process)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
