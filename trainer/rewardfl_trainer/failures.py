"""How a program of the trainer image ends: one log line, a termination message, an exit code.

`run_main` is the outermost frame of `stage`, `train` and of whatever launches the ranks. All ranks of a pod share one
termination log; the message of the earliest failure stays in it, so the rank that failed first is the one that is
reported, and not those that torchrun stopped because of it. It must not import torch: `stage` uses it too.
"""

import errno
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rewardfl_api.errors import ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_api.trainer_config import TERMINATION_LOG
from rewardfl_trainer.log_tail import TailHandler, shorten
from rewardfl_trainer.redact import redact

TERMINATION_LOG_VARIABLE = "TERMINATION_LOG"
"""Environment variable with the path of the termination log. Unset: the kubelet's, which only exists in a pod."""

TERMINATION_LOG_MAX_BYTES = 4096
"""The kubelet cuts a longer termination message, and half of a JSON text is none."""

_ARGPARSE_EXIT_CODE = 2
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_VOLUME_FAULTS = (errno.EIO, errno.EROFS, errno.ESTALE, errno.EACCES, errno.EPERM)
_OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")
"""The last one is of cuBLAS, cuDNN and their like."""

logger = logging.getLogger(__name__)


class Terminated(BaseException):
    """The process was asked to stop (SIGTERM). A BaseException, so that no library takes it for an error of its own."""


def run_main(main: Callable[[], None], log: TailHandler | None = None) -> int:
    """Run `main`, report how it failed with the end of `log`, and return the process's exit code.

    SIGTERM raises `Terminated` inside `main`; a program that wants to save first installs its own handler and raises
    `Terminated` itself when it is done. Where another process of this pod has failed earlier, the exit code is that
    one's, so a launcher that runs in `run_main` exits as the rank that failed first did.
    """
    try:
        with _sigterm_raises():
            main()
    except SystemExit as stop:
        return _of_system_exit(stop)
    except BaseException as error:  # the outermost frame: nothing may leave without a message
        return report(error, log)
    return int(ExitCode.DONE)


def report(error: BaseException, log: TailHandler | None = None) -> int:
    """Log `error`, leave it as the termination message unless an earlier one stands there, and return the exit code."""
    failure = as_rewardfl_error(error)
    message = failure.termination_message(rank=_rank(), time=time.time())
    message = message.copy_with(message=redact(message.message), hint=redact(message.hint))
    if failure is not error and not isinstance(error, Terminated | KeyboardInterrupt):
        trace = "".join(traceback.format_exception(error))
        logger.error("%s", redact(trace))
    logger.error("%s: %s %s", message.reason, message.message, message.hint)
    if log is not None:
        message = message.copy_with(log_tail=log.text())
    return leave_message(message).exit_code


def as_rewardfl_error(error: BaseException) -> RewardFLError:
    """Return `error` as one that names a reason, a remedy and an exit code."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, RewardFLError):
        return error
    if isinstance(error, Terminated | KeyboardInterrupt):
        return RewardFLError(Reason.TERMINATED, "stopped by a signal before the end", exit_code=ExitCode.TERMINATED)
    if _is_out_of_memory(error):
        return RewardFLError(
            Reason.OUT_OF_MEMORY,
            text,
            "On a GPU: deepspeed.preset zero2_cpuoffload or zero3_cpuoffload, training.use_gradient_checkpointing_offload, "
            "fewer training.num_frames or training.max_pixels. On the CPU: a higher memory limit of the pod.",
        )
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return RewardFLError(Reason.DISK_TOO_SMALL, text, "Use larger cache and work volumes.", ExitCode.IO_ERROR)
    if isinstance(error, OSError) and error.errno in _VOLUME_FAULTS:
        return RewardFLError(
            Reason.IO_FAILED,
            text,
            "Check the volume that holds this path, and that user 65532 may write to it.",
            ExitCode.IO_ERROR,
        )
    return RewardFLError(Reason.TRAINER_FAILED, text, "See the log of this pod for the traceback.")


def left_message() -> TerminationMessage | None:
    """Return the message that stands in the termination log; None when there is none."""
    try:
        text = Path(os.environ.get(TERMINATION_LOG_VARIABLE) or TERMINATION_LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return TerminationMessage.parse(text)


def leave_message(message: TerminationMessage, replace: bool = False) -> TerminationMessage:
    """Write `message` to the termination log unless an earlier failure stands there; return the one that stays.

    `replace` writes it whatever stands there: the launcher knows more than any of its ranks.

    Outside a pod there is no such file, and nothing is written unless the environment names one.
    """
    named = os.environ.get(TERMINATION_LOG_VARIABLE)
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if named else 0)
    try:
        descriptor = os.open(Path(named or TERMINATION_LOG), flags, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            earlier = TerminationMessage.parse(file.read().decode("utf-8", errors="replace"))
            if not replace and earlier is not None and _is_the_cause(earlier, message):
                return earlier
            file.seek(0)
            file.truncate()
            file.write(_encoded(message))
    except OSError as error:
        logger.debug("no termination log: %s", error)
    return message


def _is_the_cause(earlier: TerminationMessage, later: TerminationMessage) -> bool:
    """Whether `earlier` stays: the first failure does, but a rank that was stopped because of another one is no cause."""
    if (earlier.reason is Reason.TERMINATED) != (later.reason is Reason.TERMINATED):
        return later.reason is Reason.TERMINATED
    return earlier.time <= later.time


def _encoded(message: TerminationMessage) -> bytes:
    """Return the message's JSON, its texts shortened until the kubelet takes it whole: the log first, by whole lines."""
    while len(encoded := json.dumps(message.to_kubernetes(), ensure_ascii=False).encode()) > TERMINATION_LOG_MAX_BYTES:
        if message.log_tail:
            message = message.copy_with(log_tail=shorten(message.log_tail, len(message.log_tail) * 3 // 4))
        else:
            message = message.copy_with(message=message.message[: len(message.message) * 3 // 4], hint=message.hint[:200])
    return encoded


def _of_system_exit(stop: SystemExit) -> int:
    """Return the exit code of a program that called sys.exit; argparse's 2 is wrong usage."""
    if stop.code is None or stop.code == 0:
        return int(ExitCode.DONE)
    if stop.code == _ARGPARSE_EXIT_CODE:
        usage = f"wrong arguments: {' '.join(sys.argv[1:])}"
        return report(RewardFLError(Reason.BAD_USAGE, usage, "See --help.", ExitCode.USAGE))
    if isinstance(stop.code, int):
        return stop.code
    return report(RewardFLError(Reason.TRAINER_FAILED, str(stop.code)))


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is Python's, torch's or the CUDA driver's way of saying so."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = _OUT_OF_MEMORY_TEXTS
    return isinstance(error, RuntimeError | OSError) and any(text in str(error).lower() for text in texts)


def _rank() -> int | None:
    """Return the rank that torchrun gave this process; None in a program that has none."""
    text = os.environ.get("RANK", "")
    return int(text) if text.isdigit() else None


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated
