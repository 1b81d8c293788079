"""The launcher ends as the rank that failed first did, whatever torchrun makes of it."""

import json
import os
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.leases import Lease, hand_over, live
from tests.distributed import warm

TIMEOUT_SECONDS = 60
SECRET = "wJalrXUtnFEMI/K7MDENG"

RANK = """
import logging, os, signal, sys, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
rank = os.environ["RANK"]
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.failures import run_main

def main():
    for line in range(30):
        logging.info("rank %s line %d", rank, line)
    if sys.argv[1] == "secret":
        logging.info("\x1b[31mkey %s, AKIAIOSFODNN7EXAMPLE\x07\x1b[0m", os.environ["AWS_SECRET_ACCESS_KEY"])
        logging.info("GET /b/k?X-Amz-Signature=0123abcd&x=1 Authorization: AWS4-HMAC-SHA256 Credential=a/b, Signature=beef")
    if sys.argv[1] == "together":
        # rank 0 notices that its peer is gone, and says so, before anybody has looked
        peer = Path(__file__).with_name("gone")
        if rank == "1":
            peer.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while not peer.exists():
            pass
        raise RuntimeError("connection closed by peer")
    if rank == "1" and sys.argv[1] in ("data", "kill", "secret"):
        # not before the other one has written its lines: it is ended as soon as this one has failed
        while not Path(__file__).with_name("started-0").exists():
            time.sleep(0.01)
    if rank == "1" and sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and sys.argv[1] in ("data", "secret"):
        raise RewardFLError(Reason.BAD_DATASET, "row 3: no such video", "Upload it.", ExitCode.BAD_DATA)
    Path(__file__).with_name("started-" + os.environ["RANK"]).touch()
    if sys.argv[1] != "good":
        time.sleep(60)

sys.exit(run_main(main))
"""


class Launched:
    """Launches two ranks in the way that `how` says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.output = folder, folder / "termination-log", folder / "output"
        (folder / "rank.py").write_text(RANK, encoding="utf-8")

    def start(self, how: str, *more: str) -> BaseProcess:
        variables = {"TERMINATION_LOG": str(self.log), "PET_NPROC_PER_NODE": "2", "PET_STANDALONE": "1"}
        variables["AWS_SECRET_ACCESS_KEY"] = SECRET
        return warm.start(warm.launch, str(self.folder / "rank.py"), how, *more, log=self.output, variables=variables)

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


def test_the_first_failing_ranks_last_lines_go_with_its_message_and_no_other_ranks(launched: Launched) -> None:
    launched.code("data")

    tail = launched.message()["logTail"].splitlines()
    assert tail[-1].endswith("BadDataset: row 3: no such video Upload it.")
    assert "INFO rank 1 line 29" in tail
    assert len(tail) == 20
    assert not [line for line in tail if "rank 0" in line]


def test_a_killed_ranks_last_lines_are_kept(launched: Launched) -> None:
    launched.code("kill")

    assert launched.message()["logTail"].splitlines()[-1] == "INFO rank 1 line 29"


def test_the_log_goes_on_as_before_every_line_once_and_in_each_ranks_order(launched: Launched) -> None:
    launched.code("data")

    lines = launched.output.read_text(encoding="utf-8").splitlines()
    for rank in range(2):
        of_rank = [line for line in lines if line.startswith(f"INFO rank {rank} line ")]
        assert of_rank == [f"INFO rank {rank} line {number}" for number in range(30)]


def test_no_secret_and_no_control_character_is_in_the_last_lines(launched: Launched) -> None:
    launched.code("secret")

    tail = launched.message()["logTail"]
    assert "INFO key ***, ***" in tail.splitlines()
    assert "X-Amz-Signature=***&x=1" in tail
    for secret in (SECRET, "AKIA", "0123abcd", "beef", "\x1b", "\x07"):
        assert secret not in tail
    assert SECRET in launched.output.read_text(encoding="utf-8"), "the log itself is passed on as it is"


def test_a_killed_rank_comes_before_the_peer_that_noticed_and_said_so(launched: Launched) -> None:
    assert launched.code("together") == 1

    message = launched.message()
    assert (message["rank"], message["message"]) == (1, "rank 1 was killed (SIGKILL)")
    assert "rank 1 line 29" in message["logTail"]


def test_a_killed_rank_is_named_and_not_the_ranks_that_were_stopped_because_of_it(launched: Launched) -> None:
    assert launched.code("kill") == 1
    assert launched.message()["message"] == "rank 1 was killed (SIGKILL)"
    assert "memory limit" in launched.message()["hint"]


def test_a_pod_that_is_asked_to_stop_exits_with_143_and_what_it_had_staged_was_in_use_until_then(launched: Launched) -> None:
    cache, work = Cache(launched.folder / "cache"), launched.folder / "work"
    staged = Lease.new(cache.own, "team/job on pod-0")
    staged.add_view("a-view")
    hand_over(staged, work)
    staged.release()  # as one that was cleared away while the pod waited for its image
    training = {"model_paths": ["/m"], "reward_model_path": "/r", "trainable_models": "dit"}
    where = {"dataset": "/d", "output": "/o", "cache_dir": str(cache.root), "work_dir": str(work)}
    config = launched.folder / "config.yaml"
    config.write_text(TrainerConfig.model_validate({**where, "training": training}).dump(), encoding="utf-8")

    launcher = launched.start("wait", "--config", str(config))
    started = [launched.folder / f"started-{rank}" for rank in range(2)]
    warm.wait_until("the ranks have started", lambda: all(path.exists() for path in started), TIMEOUT_SECONDS)
    assert [(lease.holder, lease.views) for lease in live(cache.own)] == [("team/job on pod-0", {"a-view"})]
    os.kill(launcher.pid or 0, signal.SIGTERM)
    launcher.join(TIMEOUT_SECONDS)
    assert launcher.exitcode == 143
    assert launched.message()["reason"] == "Terminated"
    assert live(cache.own) == []
