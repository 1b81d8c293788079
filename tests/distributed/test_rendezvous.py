"""Pods of a job meet whatever the order in which they come, and whatever an attempt before them has left behind."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rewardfl_api.errors import RewardFLError
from rewardfl_trainer import rendezvous
from tests.distributed.conftest import environment_of_a_child

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

Pod = subprocess.Popen[str]
Start = Callable[..., Pod]


@pytest.fixture
def port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path, port: int) -> Iterator[Start]:
    """Start what the operator's pods of these indices would run, each in a process group of its own."""
    (tmp_path / "rank.py").write_text(RANK, encoding="utf-8")
    pods: list[Pod] = []

    def start(index: int, seconds: float = 0.0, timeout_seconds: int = 300) -> Pod:
        environment = {
            **environment_of_a_child(),
            "OMP_NUM_THREADS": "1",
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
        command = [sys.executable, "-m", "rewardfl_trainer.launch", str(tmp_path / "rank.py"), str(seconds)]
        pod = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        pods.append(pod)
        return pod

    yield start
    for pod in pods:
        kill(pod)
        pod.communicate()


def kill(pod: Pod) -> None:
    """SIGKILL a pod's processes, all of them: torchrun starts its ranks in sessions of their own."""
    if pod.poll() is None:
        parent = psutil.Process(pod.pid)
        for process in (parent, *parent.children(recursive=True)):
            process.kill()


def line_of(pod: Pod, text: str) -> str:
    assert pod.stdout is not None
    for line in pod.stdout:
        if text in line:
            return line
    raise AssertionError(f"the pod ended without saying {text!r}")


@pytest.mark.slow
def test_a_pod_that_comes_first_waits_for_pod_0(start: Start) -> None:
    early = start(1)
    time.sleep(8)
    late = start(0)

    outputs = [pod.communicate(timeout=PATIENCE_SECONDS)[0] for pod in (early, late)]

    assert [early.returncode, late.returncode] == [0, 0], outputs
    assert all("sum 2" in output for output in outputs)


@pytest.mark.slow
def test_a_pod_that_meets_the_store_of_a_dying_attempt_joins_the_next_one(start: Start) -> None:
    old_0, old_1 = start(0, seconds=600), start(1, seconds=600)
    line_of(old_0, "sum 2")
    kill(old_1)
    # The new pod 1 is there before the old pod 0, which does not yet know that its peer is gone, is evicted.
    new_1 = start(1)
    time.sleep(4)
    kill(old_0)
    new_0 = start(0)

    outputs = [pod.communicate(timeout=PATIENCE_SECONDS)[0] for pod in (new_0, new_1)]

    assert [new_0.returncode, new_1.returncode] == [0, 0], outputs
    assert all("sum 2" in output for output in outputs)


@pytest.mark.slow
def test_the_survivor_of_a_killed_peer_ends_by_itself(start: Start) -> None:
    survivor, killed = start(0, seconds=5), start(1, seconds=600)
    line_of(killed, "sum 2")
    kill(killed)

    output, _ = survivor.communicate(timeout=PATIENCE_SECONDS)

    assert survivor.returncode == 1, output


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
