"""What this package says: progress lines for people, and the one error that it raises."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

_START = time.monotonic()


class ClusterError(RuntimeError):
    """The local cluster cannot do what was asked; the message says why and what to do about it."""


def say(message: str) -> None:
    """Print one progress line on standard error, with the seconds since this program started."""
    print(f"[cluster {time.monotonic() - _START:6.1f}s] {message}", file=sys.stderr, flush=True)


def run(command: Sequence[str], *, timeout_seconds: float = 60, stdin: str | None = None) -> str:
    """Run `command` to its end and return its standard output.

    Raises:
        ClusterError: it failed or took longer than `timeout_seconds`; carries what it wrote to standard error.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{shown}` did not end within {timeout_seconds:g} s") from error
    except FileNotFoundError as error:
        raise ClusterError(f"`{command[0]}` is not installed: run `python -m tests.cluster build`") from error
    if done.returncode != 0:
        raise ClusterError(f"`{shown}` failed with exit code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def wait_until(ready: Callable[[], bool], what: str, *, timeout_seconds: float, poll_seconds: float = 0.1) -> None:
    """Poll `ready` until it is true.

    Raises:
        ClusterError: it was not within `timeout_seconds`; the message names `what` was waited for.
    """
    deadline = time.monotonic() + timeout_seconds
    while not ready():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout_seconds:g} s")
        time.sleep(poll_seconds)
