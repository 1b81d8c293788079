"""Launches the ranks of this pod: torchrun, with an exit code that means something.

torchrun itself always exits with 1. The Job's podFailurePolicy tells configuration and data errors, which are final, from
failures that are tried again, so the container has to exit as the rank that failed first did. That rank has left its
message in the termination log, which `run_main` honours; a rank that was killed could leave none, and is described here.

Arguments and PET_* variables are torchrun's own: `python -m rewardfl_trainer.launch -m rewardfl_trainer.train --config FILE`.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TERMINATION_LOG
from rewardfl_trainer import rendezvous
from rewardfl_trainer.failures import TERMINATION_LOG_VARIABLE, Terminated, run_main


def main() -> None:
    """Run torchrun with this process's arguments.

    Raises:
        RewardFLError: a rank failed; describes the first one.
        Terminated: this pod was asked to stop.
    """
    try:
        rendezvous.join(os.environ, lambda: run.main(sys.argv[1:]))
    except SignalException as error:
        raise Terminated from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise _describe(rank, failure.exitcode) from error


def _describe(rank: int, exit_code: int) -> RewardFLError:
    """Return what is known of a rank that ended with `exit_code` (negative: the signal that killed it)."""
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
