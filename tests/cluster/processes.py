"""Starts programs and stops exactly those, also the ones that an earlier, killed session started.

Each program runs in a session of its own and, before it becomes the program, writes its line of /proc/<pid>/stat to a pid
file. That line carries the pid and the start time, so a pid that the system has since given to another process is never
mistaken for ours.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .paths import program
from .report import ClusterError, wait_until

_WRITE_PID_FILE_THEN_BECOME = 'read -r stat </proc/$$/stat; printf "%s\\n" "$stat" >"$0"; exec "$@"'
_STOP_SECONDS = 20
_LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Stat:
    """The fields of /proc/<pid>/stat that identify a process (see proc(5))."""

    pid: int
    name: str
    state: str
    parent: int
    group: int
    start_ticks: int

    @classmethod
    def parse(cls, line: str) -> "Stat | None":
        before, _, after = line.rpartition(")")
        fields = after.split()
        if "(" not in before or len(fields) < 20:
            return None
        pid, _, name = before.partition("(")
        return cls(int(pid), name, fields[0], int(fields[1]), int(fields[2]), int(fields[19]))

    @classmethod
    def of(cls, pid: int) -> "Stat | None":
        """What /proc says of `pid` now; None where no such process runs."""
        try:
            return cls.parse(Path(f"/proc/{pid}/stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            return None

    @property
    def is_running(self) -> bool:
        """Whether this very process still runs; one that only waits to be collected by its parent does not."""
        now = Stat.of(self.pid)
        return now is not None and now.start_ticks == self.start_ticks and now.state not in "ZX"


def everything() -> list[Stat]:
    """All processes of this machine."""
    stats = (Stat.of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [stat for stat in stats if stat is not None]


def children_of(pid: int) -> list[Stat]:
    """The direct children of `pid`."""
    return [stat for stat in everything() if stat.parent == pid]


class Processes:
    """The programs that belong to one state folder: `<folder>/pids/<name>` and `<folder>/logs/<name>.log` for each."""

    def __init__(self, folder: Path) -> None:
        self._pids = folder / "pids"
        self._logs = folder / "logs"
        self._own: list[subprocess.Popen[bytes]] = []

    def spawn(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, lifeline: bool = False
    ) -> None:
        """Start `command` as `name`; with `lifeline`, its standard input stays open for as long as this process lives."""
        self._pids.mkdir(parents=True, exist_ok=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            started = subprocess.Popen(
                [program("sh"), "-c", _WRITE_PID_FILE_THEN_BECOME, str(self._pids / name), *command],
                stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | (environment or {}),
                start_new_session=True,
            )
        self._own.append(started)
        wait_until(lambda: self.stat(name) is not None, f"{name} starts", timeout_seconds=10, poll_seconds=0.005)

    def stat(self, name: str) -> Stat | None:
        """The process that was started as `name`, None where none was; it may have ended since."""
        try:
            return Stat.parse((self._pids / name).read_text())
        except FileNotFoundError:
            return None

    def names(self) -> list[str]:
        """The names of all programs started in this folder."""
        return sorted(path.name for path in self._pids.iterdir()) if self._pids.is_dir() else []

    def is_running(self, name: str) -> bool:
        """Whether the program started as `name` still runs."""
        stat = self.stat(name)
        return stat is not None and stat.is_running

    def require_running(self) -> None:
        """Raise ClusterError with the end of its log when one of the programs has ended."""
        for name in self.names():
            if not self.is_running(name):
                raise ClusterError(f"{name} ended by itself; the end of its log:\n{self.log_tail(name)}")

    def log_tail(self, name: str) -> str:
        """The last lines that `name` wrote."""
        log = self._logs / f"{name}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]) if log.is_file() else "(no log)"

    def abandon(self) -> None:
        """Let the programs outlive this process; `stop` still finds them by their pid files."""
        for started in self._own:
            started.returncode = 0  # nobody here will collect it, and Popen need not warn of that
        self._own.clear()

    def stop(self) -> None:
        """Kill every program of this folder and wait until all are gone; their data is thrown away, so none is asked first."""
        stats = [stat for name in self.names() if (stat := self.stat(name)) is not None and stat.is_running]
        killed = [each for stat in stats for each in _kill(stat)]
        for each in killed:
            _wait_for_end(each)
        for started in self._own:
            started.wait(_STOP_SECONDS)
            if started.stdin is not None:
                started.stdin.close()
        self._own.clear()


def _kill(stat: Stat) -> list[Stat]:
    """Kill the process, its process group, and before them the children that may be in other namespaces; return all of these."""
    running = everything()
    children = [each for each in running if each.parent == stat.pid]
    group = [each for each in running if each.group == stat.pid]
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(stat.pid, signal.SIGKILL)
    return list({each.pid: each for each in (stat, *children, *group)}.values())


def _wait_for_end(stat: Stat) -> None:
    wait_until(
        lambda: not stat.is_running, f"process {stat.pid} ({stat.name}) ends", timeout_seconds=_STOP_SECONDS, poll_seconds=0.02
    )
