"""Passes on what the ranks of this pod write to standard error, and remembers the last lines of each.

torchrun starts every rank with its standard error opened on a named pipe of ours; a thread writes what comes out of it to
the pod's log at once. A rank that is killed cannot tell what it was doing: the end of its log, kept here, can.
"""

import os
import selectors
import stat
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, LogsDest

from rewardfl_trainer.log_tail import Tail

READ_BYTES = 65_536
"""What a pipe holds: each read takes all that is there, so that what a rank wrote at once stays together."""


class RankLogs(DefaultLogsSpecs):
    """torchrun's log destinations, with standard error of every local rank through a pipe. A context manager.

    Args:
        output: file descriptor to pass the logs on to.
        through_pipes: False leaves the ranks the launcher's own standard error, and remembers nothing. For a terminal:
            what looks at it (a progress bar) has to see that it is one.
    """

    def __init__(self, output: int, through_pipes: bool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rank-logs-")
        super().__init__(log_dir=str(Path(self._folder.name) / "torchelastic"))
        self._output, self._through_pipes = output, through_pipes
        self._tails: dict[int, Tail] = {}
        self._pipes: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._end, self._ender = os.pipe()
        self._selector.register(self._end, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="rank-logs", daemon=True)

    @classmethod
    def of_this_process(cls) -> Self:
        """Pass on to this process's standard error."""
        descriptor = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        return cls(descriptor, through_pipes=not os.isatty(descriptor))

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Return where torchrun lets each local rank write."""
        destinations: LogsDest = super().reify(envs)
        if self._through_pipes:
            destinations.stderrs = {rank: self._pipe(rank) for rank in range(len(envs))}
        return destinations

    def tail(self, local_rank: int) -> str:
        """Return the last lines of a rank's standard error, without secrets. Complete once the block has ended."""
        tail = self._tails.get(local_rank)
        return tail.text() if tail is not None else ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._ender)
        self._thread.join()
        self._selector.close()
        for descriptor in (*self._pipes.values(), self._end):
            os.close(descriptor)
        self._folder.cleanup()

    def _pipe(self, local_rank: int) -> str:
        """Return the path of a rank's pipe. It is open at both ends here, so neither side ever waits for the other."""
        path = Path(self._folder.name) / f"stderr-{local_rank}"
        if local_rank not in self._pipes:
            os.mkfifo(path, stat.S_IRUSR | stat.S_IWUSR)
            pipe = self._pipes[local_rank] = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._tails[local_rank] = Tail()
            self._selector.register(pipe, selectors.EVENT_READ, local_rank)
        return str(path)

    def _run(self) -> None:
        """Pass on until the block ends, and then what is left."""
        ended = False
        while not ended:
            for key, _ in self._selector.select():
                if key.fd == self._end:
                    ended = True
                else:
                    self._pass_on(key.fd, key.data)
        for local_rank, pipe in self._pipes.items():
            self._pass_on(pipe, local_rank)

    def _pass_on(self, pipe: int, local_rank: int) -> None:
        """Read what is there, write it out and remember it."""
        while chunk := _read(pipe):
            self._tails[local_rank].add(chunk)
            _write(self._output, chunk)
            if len(chunk) < READ_BYTES:
                return


def _read(pipe: int) -> bytes:
    try:
        return os.read(pipe, READ_BYTES)
    except BlockingIOError:
        return b""


def _write(output: int, chunk: bytes) -> None:
    """Write all of it. A log that nobody takes any more must not stop training."""
    rest: Any = memoryview(chunk)
    try:
        while rest:
            rest = rest[os.write(output, rest) :]
    except OSError:
        return
