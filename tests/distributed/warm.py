"""Processes that begin with everything imported: forked from a server that does it once, for all tests of this folder.

Importing torch, DeepSpeed, DiffSynth, peft and transformers costs a process ten seconds of CPU, and a run of two ranks three
times that. A forked rank then does what a started one does: it sets its variables and runs the trainer's own `main`. The server
has joined no process group and started no thread. It must not keep anything of one run for the next.
"""

import logging
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer import environment
from rewardfl_trainer import launch as launcher
from rewardfl_trainer import train as trainer
from rewardfl_trainer.failures import run_main

SLOW_MODULES = (
    "deepspeed",
    "diffsynth.configs",
    "diffsynth.models.wan_video_dit",
    "diffsynth.models.wan_video_text_encoder",
    "diffsynth.models.wan_video_vae",
    "peft.tuners.lora",
    "pytest",
    "rewardfl_trainer.launch",
    "rewardfl_trainer.report.make",
    "rewardfl_trainer.train",
    "torch.utils.tensorboard",
    "transformers.optimization",
)
RANK_VARIABLES = {*environment.SINGLE_PROCESS, "MASTER_PORT", "GROUP_RANK"}
POLL_SECONDS = 0.02


def environment_of_a_child(**variables: str) -> dict[str, str]:
    """Return our environment without what makes us a rank: a child that inherits it would try to join our group."""
    return {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES} | variables


def start_server(config: TrainerConfig) -> None:
    """Start the server unless it runs. Libraries read the environment on import: it is that of a rank with one thread."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(SLOW_MODULES))
    with _changed(environment_of_a_child(OMP_NUM_THREADS="1")):
        environment.prepare(config)
        forkserver.ensure_running()


def start(
    program: Callable[..., object], *arguments: object, log: Path | None = None, variables: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start a process that runs `program(*arguments)`; what it returns or exits with is its exit code.

    Args:
        log: file that gets what it prints. None: where pytest's own output goes.
        variables: of its environment, beside those of the server.
    """
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=(program, arguments, log, variables or {}))
    process.start()
    return process


def start_ranks(count: int, program: Callable[..., object], *arguments: object, log: Path | None = None) -> list[BaseProcess]:
    """Start the ranks of a job, one pod's, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [start(program, *arguments, log=log, variables={**address, **sizes, **rank}) for rank in ranks]


def train(config: Path) -> int:
    """The program `python -m rewardfl_trainer.train`."""
    return run_main(lambda: trainer.main(["--config", str(config)]))


def launch(*arguments: str) -> int:
    """The program `python -m rewardfl_trainer.launch`, with its steps in the log."""
    logging.basicConfig(level=logging.INFO, force=True)
    sys.argv = ["rewardfl_trainer.launch", *arguments]
    return run_main(launcher.main)


def wait_until(what: str, check: Callable[[], object], timeout_seconds: float) -> None:
    """Repeat `check` until it returns something true.

    Raises:
        AssertionError: it did not in time; names `what` was waited for.
    """
    end = time.monotonic() + timeout_seconds
    while not check():
        assert time.monotonic() < end, f"not within {timeout_seconds:.0f} s: {what}"
        time.sleep(POLL_SECONDS)


def finish(processes: Sequence[BaseProcess], timeout_seconds: float) -> None:
    """Wait until all have ended well; when one has not, end the others, as torchrun does.

    Raises:
        AssertionError: one has failed, or not ended in time.
    """
    end = time.monotonic() + timeout_seconds
    try:
        while any(process.exitcode is None for process in processes) and time.monotonic() < end:
            if any(process.exitcode for process in processes):
                break
            time.sleep(POLL_SECONDS)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * len(processes), f"exit codes {codes} (None: still running)"
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(program: Callable[..., object], arguments: Sequence[object], log: Path | None, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    if log is not None:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), sys.stdout.fileno())
            os.dup2(file.fileno(), sys.stderr.fileno())
    sys.exit(program(*arguments))  # type: ignore[arg-type]


@contextmanager
def _changed(variables: Mapping[str, str]) -> Iterator[None]:
    """Let the environment be `variables` within the block."""
    known = dict(os.environ)
    os.environ.clear()
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(known)
