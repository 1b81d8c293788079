"""Launches the ranks of this pod: torchrun, with an exit code that means something.

torchrun itself always exits with 1. The Job's podFailurePolicy tells configuration and data errors, which are final, from
failures that are tried again, so the container has to exit as the rank that failed first did. That rank has left its
message in the termination log, which `run_main` honours; a rank that was killed could leave none, and is described here.
Either way the end of that rank's log goes into the message. What was staged is kept in the cache while the launcher lives, also
while it waits for pods that are still staging.

Arguments and PET_* variables are torchrun's own: `python -m rewardfl_trainer.launch -m rewardfl_trainer.train --config FILE`.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch

from rewardfl_api.errors import ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_api.trainer_config import TERMINATION_LOG
from rewardfl_trainer import configuration, memory_limit, rendezvous
from rewardfl_trainer.failures import TERMINATION_LOG_VARIABLE, Terminated, leave_message, left_message, run_main
from rewardfl_trainer.rank_logs import RankLogs
from rewardfl_trainer.staging import leases

DEFAULT_MASTER_PORT = 29500
"""torchrun's own, where no rendezvous is asked for."""

KILLED = (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL)
"""Ends that a rank does not come to because another one failed."""


def main() -> None:
    """Run torchrun with this process's arguments.

    Raises:
        RewardFLError: a rank failed; describes the first one.
        Terminated: this pod was asked to stop.
    """
    kills = memory_limit.kills()
    try:
        with leases.kept(_work_dir(sys.argv[1:])), RankLogs.of_this_process() as logs:
            rendezvous.join(os.environ, lambda: torchrun(sys.argv[1:], logs))
    except SignalException as error:
        raise Terminated from error
    except ChildFailedError as error:
        raise account_for(error, logs, out_of_memory=memory_limit.kills() > kills) from error


def _work_dir(arguments: list[str]) -> Path | None:
    """Return the work folder of the run; None where the arguments name none. What is wrong with them, the ranks will say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    file = parser.parse_known_args(arguments)[0].config
    try:
        return None if file is None else Path(configuration.load(file).work_dir)
    except RewardFLError:
        return None


def torchrun(arguments: list[str], logs: RankLogs) -> None:
    """Run torchrun with the ranks' standard error passed through `logs`: what its own `run` does, which takes no such thing.

    Raises:
        ChildFailedError: a rank failed.
        SignalException: this process was asked to stop.
    """
    options = run.parse_args(arguments)  # type: ignore[no-untyped-call]
    if options.standalone or (options.rdzv_backend == "static" and not options.rdzv_endpoint):
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    options.master_port = options.master_port or DEFAULT_MASTER_PORT
    config, command, command_arguments = run.config_from_args(options)
    config.logs_specs = logs
    elastic_launch(config, command)(*command_arguments)


def account_for(error: ChildFailedError, logs: RankLogs, out_of_memory: bool) -> RewardFLError:
    """Return the first failing rank's error, and leave its message with the end of its log."""
    left = left_message()
    rank = first_to_fail(error, left)
    failure = error.failures[rank]
    described = _describe(rank, failure.exitcode, out_of_memory)
    if left is not None and left.rank == rank:
        message = left
    else:
        message = described.termination_message(rank, min(time.time(), left.time if left is not None else time.time()))
    leave_message(message.copy_with(log_tail=logs.tail(failure.local_rank)), replace=True)
    return described


def first_to_fail(error: ChildFailedError, left: TerminationMessage | None) -> int:
    """Return the rank whose failure was the first: one that was killed comes before those that noticed and said so.

    torchrun looks at the ranks ten times a second and notes whole seconds, so all of one look count as one.
    """
    first = min(failure.timestamp for failure in error.failures.values())
    killed = [rank for rank, failure in error.failures.items() if failure.exitcode in KILLED and failure.timestamp == first]
    if killed:
        return killed[0]
    if left is not None and left.rank in error.failures:
        return left.rank
    rank, _ = error.get_first_failure()
    return int(rank)


def _describe(rank: int, exit_code: int, out_of_memory: bool) -> RewardFLError:
    """Return what is known of a rank that ended with `exit_code` (negative: the signal that killed it)."""
    if exit_code == -signal.SIGKILL and out_of_memory:
        return RewardFLError(
            Reason.OUT_OF_MEMORY,
            f"rank {rank} was killed (SIGKILL): the pod needed more memory than its limit",
            "Raise the memory limit in spec.template, or use fewer frames or pixels.",
        )
    if exit_code == -signal.SIGKILL:
        return RewardFLError(
            Reason.TRAINER_FAILED,
            f"rank {rank} was killed (SIGKILL)",
            "Most often the pod's memory limit: raise it in spec.template, or use fewer frames or pixels.",
        )
    if exit_code in (-signal.SIGTERM, ExitCode.TERMINATED):
        return RewardFLError(Reason.TERMINATED, f"rank {rank} was stopped by SIGTERM", exit_code=ExitCode.TERMINATED)
    if exit_code < 0:
        return RewardFLError(Reason.TRAINER_FAILED, f"rank {rank} was ended by {signal.Signals(-exit_code).name}", "See its log.")
    return RewardFLError(Reason.TRAINER_FAILED, f"rank {rank} exited with {exit_code}", "See its log.")


def _share_termination_log(folder: Path) -> None:
    """Outside a pod the ranks need another file to leave their messages in, or the first failure would not be known."""
    if TERMINATION_LOG_VARIABLE not in os.environ and not Path(TERMINATION_LOG).exists():
        os.environ[TERMINATION_LOG_VARIABLE] = str(folder / "termination-log")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        _share_termination_log(Path(scratch))
        code = run_main(main)
    sys.exit(code)
