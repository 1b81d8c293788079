"""Reads a piece of a remote file into memory, going on where it broke off. Writes nothing."""

import random
import threading

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.staging.meter import FileMeter
from rewardfl_trainer.staging.remote import InterruptedReadError, Remote, RemoteFile

MAX_PAUSE_SECONDS = 8.0


class CancelledError(Exception):
    """Another file failed; this one was given up."""


class Reader:
    """Reads for all files of a fetch. Safe to use from several threads.

    Args:
        attempts: tries in a row that bring nothing, after which a read is given up.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End every read, now and from now on."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise CancelledError after `cancel`."""
        if self._cancelled.is_set():
            raise CancelledError

    def read(self, remote: Remote, file: RemoteFile, meter: FileMeter, start: int, into: memoryview) -> None:
        """Fill `into` with the content from byte `start` on.

        Raises:
            RewardFLError: refused, or given up.
            ObjectChangedError: the file is no longer the one that was announced.
            CancelledError: see `cancel`.
        """
        failures = 0
        while into:
            self.check()
            before = start
            broken = _cut_short(file)
            try:
                for count in remote.read(file, start, into):
                    self.check()
                    start, into = start + count, into[count:]
                    meter.add(count)
            except InterruptedReadError as error:
                broken = error.final
            if not into:
                return
            failures = 1 if start > before else failures + 1
            if failures >= self._attempts:
                raise broken
            self._cancelled.wait(random.uniform(0.5, 1.0) * min(2.0 ** (failures - 1), MAX_PAUSE_SECONDS))  # noqa: S311


def _cut_short(file: RemoteFile) -> RewardFLError:
    message = f"{file.subject}: the answer ends before its last byte"
    hint = "Check storage.endpoint and whatever stands between it and the cluster."
    return RewardFLError(Reason.STORAGE_UNAVAILABLE, message, hint, ExitCode.UNAVAILABLE)
