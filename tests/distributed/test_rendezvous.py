"""Pods of a job meet whatever the order in which they come, and whatever an attempt before them has left behind."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from rewardfl_api.errors import RewardFLError
from rewardfl_trainer import rendezvous
from tests.distributed import warm

RANK = """
import os, sys, time
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
print(f"pod {os.environ['POD']} rank {dist.get_rank()} sum {int(total)}", flush=True)
time.sleep(float(sys.argv[1]))
dist.barrier()
"""

PATIENCE_SECONDS = 400
"""On a busy machine importing torch alone takes more than a minute."""

MET_SECONDS = 1.0
"""Between the connection to a store and the request to join."""


@dataclass(frozen=True)
class Pod:
    """A pod's launcher, and what its processes print."""

    process: BaseProcess
    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        def said() -> bool:
            assert self.process.is_alive() or text in self.text(), f"the pod ended without saying {text!r}: {self.text()}"
            return text in self.text()

        warm.wait_until(f"the pod says {text!r}", said, PATIENCE_SECONDS)

    def wait_for_connection(self, port: int) -> None:
        """Wait until it has a connection to this port."""
        launcher = psutil.Process(self.process.pid)
        warm.wait_until(
            f"a connection to port {port}",
            lambda: any(connection.raddr and connection.raddr.port == port for connection in launcher.net_connections()),
            PATIENCE_SECONDS,
        )

    def end(self) -> int | None:
        """Wait for its end and return its exit code."""
        self.process.join(PATIENCE_SECONDS)
        return self.process.exitcode

    def kill(self) -> None:
        """SIGKILL its processes, all of them: torchrun starts its ranks in sessions of their own."""
        if self.process.is_alive():
            parent = psutil.Process(self.process.pid)
            for process in (parent, *parent.children(recursive=True)):
                process.kill()
        self.process.join()


Start = Callable[..., Pod]


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(warm_server: None, tmp_path: Path, port: int) -> Iterator[Start]:
    """Start what the operator's pods of these indices would run, each in a process group of its own."""
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")
    pods: list[Pod] = []

    def start(index: int, seconds: float = 0.0, timeout_seconds: int = 300) -> Pod:
        variables = {
            "POD": str(index),
            "TERMINATION_LOG": str(tmp_path / f"log-{len(pods)}"),
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_ENDPOINT": f"localhost:{port}",
            "PET_RDZV_ID": "job",
            "PET_RDZV_CONF": f"join_timeout={timeout_seconds},last_call_timeout=1,read_timeout=60",
            "PET_MAX_RESTARTS": "0",
            "JOB_COMPLETION_INDEX": str(index),
        }
        log = tmp_path / f"pod-{len(pods)}.log"
        log.touch()
        script = str(tmp_path / "rank.py")
        pods.append(Pod(warm.start(warm.launch, script, str(seconds), log=log, variables=variables), log))
        return pods[-1]

    yield start
    for pod in pods:
        pod.kill()


@pytest.mark.slow
def test_a_pod_that_comes_first_waits_for_pod_0(start: Start) -> None:
    early = start(1)
    early.wait_for("waiting for pod 0 to open the rendezvous")
    late = start(0)

    codes = [pod.end() for pod in (early, late)]

    outputs = [pod.text() for pod in (early, late)]
    assert codes == [0, 0], outputs
    assert all("sum 2" in output for output in outputs)


@pytest.mark.slow
def test_a_pod_that_meets_the_store_of_a_dying_attempt_joins_the_next_one(start: Start, port: int) -> None:
    old_0, old_1 = start(0, seconds=600), start(1, seconds=600)
    old_0.wait_for("sum 2")
    old_1.kill()
    # The new pod 1 is there before the old pod 0, which does not yet know that its peer is gone, is evicted.
    new_1 = start(1)
    new_1.wait_for_connection(port)
    time.sleep(MET_SECONDS)
    old_0.kill()
    new_0 = start(0)

    codes = [pod.end() for pod in (new_0, new_1)]

    outputs = [pod.text() for pod in (new_0, new_1)]
    assert codes == [0, 0], outputs
    assert all("sum 2" in output for output in outputs)


@pytest.mark.slow
def test_the_survivor_of_a_killed_peer_ends_by_itself(start: Start) -> None:
    survivor, killed = start(0), start(1, seconds=600)
    killed.wait_for("sum 2")
    killed.kill()

    assert survivor.end() == 1, survivor.text()


def test_waiting_for_pod_0_is_bounded_and_says_what_was_waited_for(port: int) -> None:
    environment = {
        "PET_NNODES": "2",
        "PET_RDZV_ENDPOINT": f"localhost:{port}",
        "JOB_COMPLETION_INDEX": "1",
        "PET_RDZV_CONF": "join_timeout=1",
    }

    with pytest.raises(RewardFLError, match=rf"waited 1 s for pod 0 to open the rendezvous at localhost:{port}"):
        rendezvous.join(environment, lambda: pytest.fail("torchrun was started"))


def test_a_run_by_hand_is_left_alone() -> None:
    environment = {"PET_NNODES": "1"}
    calls: list[str] = []

    rendezvous.join(environment, lambda: calls.append("torchrun"))

    assert calls == ["torchrun"]
    assert environment == {"PET_NNODES": "1"}


def test_a_single_pod_needs_no_dns() -> None:
    environment = {"PET_NNODES": "1", "PET_RDZV_ENDPOINT": "job-0.job:29400", "JOB_COMPLETION_INDEX": "0"}

    rendezvous.join(environment, lambda: None)

    assert environment["PET_RDZV_ENDPOINT"] == "localhost:29400"
    assert environment["PET_LOCAL_ADDR"] == "localhost"
    assert environment["PET_RDZV_CONF"] == "is_host=true"
