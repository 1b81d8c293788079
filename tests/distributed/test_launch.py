"""The launcher ends as the rank that failed first did, whatever torchrun makes of it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.conftest import environment_of_a_child

pytestmark = pytest.mark.slow

RANK = """
import os, signal, sys, time
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.failures import run_main

def main():
    if os.environ["RANK"] == "1" and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "1" and sys.argv[1] == "data":
        raise RewardFLError(Reason.BAD_DATASET, "row 3: no such video", "Upload it.", ExitCode.BAD_DATA)
    if sys.argv[1] != "good":
        time.sleep(60)

sys.exit(run_main(main))
"""


@pytest.fixture
def launched(tmp_path: Path) -> Any:
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")
    log = tmp_path / "termination-log"

    def start(how: str) -> subprocess.Popen[bytes]:
        environment = environment_of_a_child(TERMINATION_LOG=str(log), PET_NPROC_PER_NODE="2", PET_STANDALONE="1")
        command = [sys.executable, "-m", "rewardfl_trainer.launch", str(tmp_path / "rank.py"), how]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    start.log = log  # type: ignore[attr-defined]
    return start


def message(launched: Any) -> dict[str, Any]:
    return dict(json.loads(launched.log.read_text(encoding="utf-8")))


def test_ranks_that_end_well_leave_no_message(launched: Any) -> None:
    assert launched("good").wait(timeout=60) == 0
    assert not launched.log.exists()


def test_a_data_error_of_one_rank_is_the_pods_exit_code_and_message(launched: Any) -> None:
    assert launched("data").wait(timeout=60) == 65
    assert (message(launched)["reason"], message(launched)["rank"]) == ("BadDataset", 1)


def test_a_killed_rank_is_named_and_not_the_ranks_that_were_stopped_because_of_it(launched: Any) -> None:
    assert launched("kill").wait(timeout=60) == 1
    assert message(launched)["message"] == "rank 1 was killed (SIGKILL)"
    assert "memory limit" in message(launched)["hint"]


def test_a_pod_that_is_asked_to_stop_exits_with_143(launched: Any) -> None:
    process = launched("wait")
    time.sleep(8)  # torchrun has started its ranks by then
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert message(launched)["reason"] == "Terminated"
