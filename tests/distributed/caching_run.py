"""A job of the cache tests: fills the cache as a run does, and prints what it made.

`caching_run.py CONFIG [WRITES]`: with WRITES the process is killed while it writes so many entries' last, before it is renamed.
"""

import json
import os
import signal
import sys

from rewardfl_trainer import configuration, environment
from rewardfl_trainer.precompute import store
from rewardfl_trainer.precompute.store import Store
from rewardfl_trainer.run import assemble


def main(path: str, writes: int | None) -> None:
    config = configuration.load(path)
    environment.prepare(config)
    process = environment.join_process_group(config)
    made: list[str] = []
    real_write, real_sync = Store.write, store._sync

    def write(self: Store, key: store.Key, tensors: object) -> None:
        made.append(self.path(key).name)
        real_write(self, key, tensors)  # type: ignore[arg-type]

    def sync(place: object) -> None:
        if len(made) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        real_sync(place)  # type: ignore[arg-type]

    Store.write, store._sync = write, sync  # type: ignore[method-assign,assignment]
    assemble(config, process)
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
