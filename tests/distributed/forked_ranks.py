"""Starts the ranks of one training run after another, each run in fresh processes, and kills them where it is told to.

Run in a process of its own (warm.py): what takes long, importing torch, DeepSpeed and DiffSynth, is done before the ranks are
forked; a rank then runs the trainer's own `main`. The plan is a JSON list of runs, each with

- config: path of its configuration; ranks: how many, 2 if left out;
- onto: a checkpoint's folder that is put into the output beforehand;
- wipe: true empties the work folder first, as in a new pod;
- after: seconds after which all ranks get SIGKILL, counted from the start, or from the moment that the next two name;
- step: the line of this step stands in the metrics;
- writing: a checkpoint that is not whole has this many files;
- term: true sends SIGTERM to the last rank instead, and kills nobody.

Writes a JSON list of the exit codes and seconds of each run.
"""

import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

from rewardfl_trainer import configuration
from tests.distributed import warm

POLL_SECONDS = 0.0005


def main(plan: Path, results: Path) -> None:
    runs: list[dict[str, Any]] = json.loads(plan.read_text(encoding="utf-8"))
    results.write_text(json.dumps([carry_out(run) for run in runs]), encoding="utf-8")


def carry_out(run: dict[str, Any]) -> dict[str, Any]:
    config = configuration.load(run["config"])
    if run.get("wipe"):
        shutil.rmtree(config.work_dir, ignore_errors=True)
    if "onto" in run:
        checkpoint = Path(run["onto"])
        shutil.copytree(checkpoint, Path(config.output) / "checkpoints" / checkpoint.name)
    started = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [fork_rank(run["config"], rank, run.get("ranks", 2), port) for rank in range(run.get("ranks", 2))]
    if run.get("after") is not None:
        kill(ranks, run, Path(config.work_dir) / "output", started)
    codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    return {"codes": codes, "seconds": time.monotonic() - started}


def fork_rank(config: str, rank: int, world_size: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE="1", **address)
    os._exit(warm.train(Path(config)))


def kill(ranks: list[int], run: dict[str, Any], output: Path, counted_from: float) -> None:
    """Kill all ranks of a run, or stop one, at the moment that is asked for, unless they end before."""
    while not is_time(run, output):
        if any(os.waitid(os.P_PID, rank, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None for rank in ranks):
            return
        time.sleep(POLL_SECONDS)
        if "step" in run or "writing" in run:
            counted_from = time.monotonic()
    time.sleep(max(0.0, counted_from + run["after"] - time.monotonic()))
    for rank in ranks[-1:] if run.get("term") else ranks:
        os.kill(rank, signal.SIGTERM if run.get("term") else signal.SIGKILL)


def is_time(run: dict[str, Any], output: Path) -> bool:
    if "step" in run:
        metrics = output / "metrics.jsonl"
        return metrics.is_file() and f'"step": {run["step"]},' in metrics.read_text()
    if "writing" in run:
        folders = (output / "checkpoints").glob("step-*")
        return any(not (path / "manifest.json").is_file() and count(path) >= run["writing"] for path in folders)
    return True


def count(folder: Path) -> int:
    try:
        return len(list(folder.iterdir()))
    except FileNotFoundError:
        return 0
