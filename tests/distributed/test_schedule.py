"""A schedule that watches the loss watches that of all ranks, so that all keep the same learning rate."""

import json
from pathlib import Path

import pytest

from tests.distributed import schedule_rank, warm

pytestmark = pytest.mark.usefixtures("warm_server")


def test_ranks_whose_losses_differ_keep_the_same_learning_rate(tmp_path: Path) -> None:
    warm.finish(warm.start_ranks(2, schedule_rank.main, tmp_path), timeout_seconds=300)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == [1.0, 0.5, 0.25, 0.125]
