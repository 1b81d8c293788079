"""The logs of a job's pods, line by line. A log that is followed goes on after a cut, without a line twice, and after a restart.

A job's pods never restart in place: every attempt has pods of its own, so `previous` means the pods of the attempt before.
"""

import contextlib
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes.client import CoreV1Api

from .connection import CONNECT_SECONDS, READ_SECONDS, Connection
from .errors import NotFoundError, UnreachableError
from .halt import Halt, HaltedError
from .history import STAGE, TRAINER, Pod, pods
from .jobs import Jobs
from .view import Job

POLL_SECONDS = 1.0
RECONNECT_SECONDS = 1.0
FOLLOWED_SECONDS = 120.0
"""A log that is silent for so long is asked for anew: the connection may have died without a word."""

OVERLAP_SECONDS = 5
"""Asked for anew after a cut; lines that were seen already are told by their time."""

_RANK = re.compile(r"^\S+ \S+ rank (\d+) [A-Z]+ ")
"""How the trainer's lines begin (rewardfl_trainer.environment)."""


@dataclass(frozen=True)
class Line:
    """A line of a log."""

    pod: Pod
    container: str
    text: str


@dataclass(frozen=True)
class Selection:
    """Which logs are meant.

    Attributes:
        node: of this node only.
        rank: only what this rank wrote; its node has to be given as well.
        container: stage or trainer. None: the trainer, and where it has not started yet the stage.
        previous: of the attempt before.
        tail: only the last so many lines of each.
        timestamps: each line with its time.
    """

    node: int | None = None
    rank: int | None = None
    container: str | None = None
    previous: bool = False
    tail: int | None = None
    timestamps: bool = False


def read(connection: Connection, job: Job, wanted: Selection) -> Iterator[Line]:
    """Yield the logs as they are now, node by node.

    Raises:
        NotFoundError: there are no such pods, or they have not started.
        ClientError: the cluster cannot be asked.
    """
    chosen = choose(pods(connection, job), wanted, job)
    started = [(pod, name) for pod in chosen for name in _containers(pod, wanted) if pod.has_started(name)]
    if not started:
        phases = ", ".join(sorted({pod.phase for pod in chosen}))
        raise NotFoundError(f"no container of {job.name} has started yet (pods: {phases})", f"see rewardfl describe {job.name}")
    for pod, container in started:
        source = _Source(connection, job.namespace, pod, container, wanted)
        kept = deque(source.lines(follow=False), wanted.tail) if wanted.rank is not None else source.lines(follow=False)
        yield from (Line(pod, container, text) for text in kept)


def follow(jobs: Jobs, job: Job, wanted: Selection, tell: Callable[[Job], object] = lambda job: None) -> Iterator[Line]:
    """Yield the logs as they are written, of all pods at once, those of later attempts too, until the job has ended.

    A job that is suspended is waited for. `tell` is called with the job, each time that it is looked at.

    Raises:
        ClientError: the job was deleted, or the cluster cannot be asked.
        HaltedError: the connection's halt was told to end it.
    """
    halt = Halt()
    try:
        yield from _followed_lines(jobs, job, wanted, halt, tell)
    finally:
        halt.now()


def _followed_lines(jobs: Jobs, job: Job, wanted: Selection, halt: Halt, tell: Callable[[Job], object]) -> Iterator[Line]:
    """Yield the lines of threads that read a log each, and that `halt` ends."""
    lines: queue.Queue[Line] = queue.Queue(maxsize=10_000)
    followed: dict[tuple[str, str], threading.Thread] = {}
    failures: list[Exception] = []
    connection = jobs.connection.with_halt(halt)
    while True:
        has_looked = False
        with contextlib.suppress(UnreachableError):
            job = jobs.get(job.name, job.namespace)
            tell(job)
            for pod in choose(pods(jobs.connection, job), wanted, None):
                for container in _followed(pod, wanted):
                    if (pod.uid, container) not in followed and pod.has_started(container):
                        source = _Source(connection, job.namespace, pod, container, wanted)
                        followed[pod.uid, container] = _start(source, lines, failures)
            has_looked = True
        yield from _waiting(lines, POLL_SECONDS)
        jobs.connection.halt.check()
        if failures:
            raise failures[0]
        if has_looked and job.has_ended and not any(thread.is_alive() for thread in followed.values()):
            yield from _waiting(lines, 0)
            if not followed:
                choose([], wanted, job)
            return


def choose(found: list[Pod], wanted: Selection, job: Job | None) -> list[Pod]:
    """Return the pods that are meant: of each node the newest, or the one before it.

    Raises:
        NotFoundError: there are none; only where `job`, which is named then, is given.
    """
    by_node: dict[int, list[Pod]] = {}
    for pod in sorted(found, key=lambda pod: (pod.node, pod.created)):
        by_node.setdefault(pod.node, []).append(pod)
    place = 2 if wanted.previous else 1
    chosen = [each[-place] for node, each in by_node.items() if len(each) >= place and wanted.node in (None, node)]
    if not chosen and job is not None:
        what = "pods of an earlier attempt" if wanted.previous else "pods"
        raise NotFoundError(f"{job.name} ({job.phase or 'new'}) has no {what}", f"see rewardfl describe {job.name}")
    return chosen


def node_of_rank(job: Job, rank: int) -> int:
    """Return the node on which a rank runs.

    Raises:
        NotFoundError: there is no such rank.
    """
    processes = job.spec.processes_of_a_node if job.spec is not None else 1
    if not 0 <= rank < job.nodes * processes:
        last = job.nodes * processes - 1
        raise NotFoundError(
            f"{job.name} has no rank {rank}", f"its ranks are 0 to {last}, {processes} on each of {job.nodes} nodes"
        )
    return rank // processes


class OneRank:
    """Keeps the lines of one rank of a pod; a line without a rank, as of a traceback, goes with the line before it."""

    def __init__(self, rank: int | None) -> None:
        self._rank = rank
        self._last: int | None = rank

    def takes(self, text: str) -> bool:
        """Whether a line belongs to the rank."""
        if self._rank is None:
            return True
        if begin := _RANK.match(text):
            self._last = int(begin[1])
        return self._last == self._rank


class _Source:
    """The log of one container."""

    def __init__(self, connection: Connection, namespace: str, pod: Pod, container: str, wanted: Selection) -> None:
        self._connection, self._namespace, self.pod, self.container, self._wanted = connection, namespace, pod, container, wanted
        self._rank = OneRank(wanted.rank if container == TRAINER else None)
        self._seen = ""

    def lines(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines. One that follows ends when the container has."""
        since: int | None = None
        while True:
            began = time.monotonic()
            try:
                yield from self._connected(follow, since)
            except (urllib3.exceptions.HTTPError, UnreachableError, OSError):
                if not follow:
                    raise
            if not follow or self._is_over():
                return
            since = int(time.monotonic() - began) + OVERLAP_SECONDS
            self._connection.halt.pause(RECONNECT_SECONDS)

    def put(self, lines: "queue.Queue[Line]", line: Line) -> None:
        """Hand on a line, as soon as there is room.

        Raises:
            HaltedError: nobody takes lines any more.
        """
        while True:
            self._connection.halt.check()
            with contextlib.suppress(queue.Full):
                lines.put(line, timeout=POLL_SECONDS)
                return

    def _connected(self, follow: bool, since: int | None) -> Iterator[str]:
        with self._connection.errors(f"the log of {self.pod.name}"):
            api: Any = CoreV1Api(self._connection.api)  # the types of the stubs lack what is used here
            answer = api.read_namespaced_pod_log(
                self.pod.name, self._namespace, container=self.container, follow=follow, timestamps=True,
                tail_lines=self._tail(follow) if since is None else None, since_seconds=since,
                _preload_content=False, _request_timeout=(CONNECT_SECONDS, FOLLOWED_SECONDS if follow else READ_SECONDS),
            )  # fmt: skip
        with self._connection.halt.reading(answer):
            for stamped in _lines(answer):
                stamp, _, text = stamped.partition(" ")
                if stamp <= self._seen:
                    continue
                self._seen = stamp
                if self._rank.takes(text):
                    yield stamped if self._wanted.timestamps else text

    def _tail(self, follow: bool) -> int | None:
        """How many lines the server is asked for. Those of one rank are counted here, since others lie between them."""
        return self._wanted.tail if follow or self._wanted.rank is None else None

    def _is_over(self) -> bool:
        """Whether nothing more is to come: the container has ended, or its pod is gone."""
        try:
            with self._connection.errors(f"pod {self.pod.name}"):
                answer = CoreV1Api(self._connection.api).read_namespaced_pod(
                    self.pod.name, self._namespace, _request_timeout=self._connection.timeouts
                )
        except NotFoundError:
            return True
        except UnreachableError:
            return False
        now = Pod(answer)
        return now.uid != self.pod.uid or now.has_ended(self.container)


def _start(source: _Source, lines: "queue.Queue[Line]", failures: list[Exception]) -> threading.Thread:
    """Read a log in a thread of its own. Ends when nobody wants its lines any more, and with the program."""

    def run() -> None:
        try:
            for text in source.lines(follow=True):
                source.put(lines, Line(source.pod, source.container, text))
        except (NotFoundError, HaltedError):
            return  # the pod went away, and what it wrote with it; or nobody wants to know
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _waiting(lines: "queue.Queue[Line]", seconds: float) -> Iterator[Line]:
    """Yield what comes within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        try:
            yield lines.get(timeout=max(end - time.monotonic(), 0.001))
        except queue.Empty:
            return


def _containers(pod: Pod, wanted: Selection) -> tuple[str, ...]:
    """Whose log is read: the trainer's once it has one."""
    if wanted.container is not None:
        return (wanted.container,)
    return (TRAINER,) if pod.has_started(TRAINER) else (STAGE,)


def _followed(pod: Pod, wanted: Selection) -> tuple[str, ...]:
    """Whose log is followed: the stage's while it runs, and then the trainer's."""
    if wanted.container is not None:
        return (wanted.container,)
    return (TRAINER,) if pod.has_ended(STAGE) and pod.has_started(TRAINER) else (STAGE,)


def _lines(answer: Any) -> Iterator[str]:
    """The lines of a log as they come in."""
    buffer = b""
    for part in answer.stream(amt=None, decode_content=True):
        *complete, buffer = (buffer + part).split(b"\n")
        yield from (line.decode("utf-8", "replace").rstrip("\r") for line in complete)
    if buffer:
        yield buffer.decode("utf-8", "replace")
