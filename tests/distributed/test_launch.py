"""The launcher ends as the rank that failed first did, whatever torchrun makes of it."""

import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import warm

TIMEOUT_SECONDS = 60

RANK = """
import os, signal, sys, time
from pathlib import Path
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.failures import run_main

def main():
    if os.environ["RANK"] == "1" and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "1" and sys.argv[1] == "data":
        raise RewardFLError(Reason.BAD_DATASET, "row 3: no such video", "Upload it.", ExitCode.BAD_DATA)
    Path(__file__).with_name("started-" + os.environ["RANK"]).touch()
    if sys.argv[1] != "good":
        time.sleep(60)

sys.exit(run_main(main))
"""


class Launched:
    """Launches two ranks in the way that `how` says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "termination-log"
        (folder / "rank.py").write_text(RANK, encoding="utf-8")

    def start(self, how: str) -> BaseProcess:
        variables = {"TERMINATION_LOG": str(self.log), "PET_NPROC_PER_NODE": "2", "PET_STANDALONE": "1"}
        return warm.start(warm.launch, str(self.folder / "rank.py"), how, variables=variables)

    def code(self, how: str) -> int | None:
        """Return what the launcher exits with."""
        launcher = self.start(how)
        launcher.join(TIMEOUT_SECONDS)
        return launcher.exitcode

    def message(self) -> dict[str, Any]:
        return dict(json.loads(self.log.read_text(encoding="utf-8")))


@pytest.fixture
def launched(warm_server: None, tmp_path: Path) -> Launched:
    return Launched(tmp_path)


def test_ranks_that_end_well_leave_no_message(launched: Launched) -> None:
    assert launched.code("good") == 0
    assert not launched.log.exists()


def test_a_data_error_of_one_rank_is_the_pods_exit_code_and_message(launched: Launched) -> None:
    assert launched.code("data") == 65
    assert (launched.message()["reason"], launched.message()["rank"]) == ("BadDataset", 1)


def test_a_killed_rank_is_named_and_not_the_ranks_that_were_stopped_because_of_it(launched: Launched) -> None:
    assert launched.code("kill") == 1
    assert launched.message()["message"] == "rank 1 was killed (SIGKILL)"
    assert "memory limit" in launched.message()["hint"]


def test_a_pod_that_is_asked_to_stop_exits_with_143(launched: Launched) -> None:
    launcher = launched.start("wait")
    started = [launched.folder / f"started-{rank}" for rank in range(2)]
    warm.wait_until("the ranks have started", lambda: all(path.exists() for path in started), TIMEOUT_SECONDS)
    os.kill(launcher.pid or 0, signal.SIGTERM)
    launcher.join(TIMEOUT_SECONDS)
    assert launcher.exitcode == 143
    assert launched.message()["reason"] == "Terminated"
