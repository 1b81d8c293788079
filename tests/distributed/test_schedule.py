"""A schedule that watches the loss watches that of all ranks, so that all keep the same learning rate."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.conftest import environment_of_a_child

pytestmark = pytest.mark.slow

RANK = """
import json, sys
from pathlib import Path
import torch
from torch import distributed
from torch.optim.lr_scheduler import ReduceLROnPlateau
from rewardfl_trainer.optimizer import LossWatcher, advance_schedule

distributed.init_process_group("gloo")
rank = distributed.get_rank()
optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
schedule = LossWatcher(ReduceLROnPlateau(optimizer, patience=0, factor=0.5), warmup_steps=0)
rates = []
for step in range(4):
    # Rank 0 gets better all the time and rank 1 gets worse, twice as fast: together they get worse.
    advance_schedule(schedule, float(step) * (2.0 if rank else -1.0))
    rates.append(optimizer.param_groups[0]["lr"])
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(rates))
distributed.destroy_process_group()
"""


def test_ranks_whose_losses_differ_keep_the_same_learning_rate(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(tmp_path)]
    subprocess.run(launch, env=environment_of_a_child(OMP_NUM_THREADS="1"), check=True, timeout=300)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == [1.0, 0.5, 0.25, 0.125]
