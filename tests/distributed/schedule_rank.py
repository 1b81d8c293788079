"""A rank of the schedule's test: makes four steps with losses of its own, and writes down the learning rates."""

import json
from pathlib import Path

import torch
from torch import distributed
from torch.optim.lr_scheduler import ReduceLROnPlateau

from rewardfl_trainer.optimizer import LossWatcher, advance_schedule


def main(folder: Path) -> None:
    """Leave `<rank>.json` in the folder."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = LossWatcher(ReduceLROnPlateau(optimizer, patience=0, factor=0.5), warmup_steps=0)
    rates = []
    for step in range(4):
        # Rank 0 gets better all the time and rank 1 gets worse, twice as fast: together they get worse.
        advance_schedule(schedule, float(step) * (2.0 if rank else -1.0))
        rates.append(optimizer.param_groups[0]["lr"])
    (folder / f"{rank}.json").write_text(json.dumps(rates))
    distributed.destroy_process_group()
