"""The client: submits jobs, waits for them, and reads what they have written. The command line is made of it.

Thin: what it asks the cluster is `jobs.py`'s, `logs.py`'s and `history.py`'s, what it reads from object storage `results.py`'s.
`AsyncClient` is made of the methods here, one by one: what waits must be a generator, or end when the connection's halt says so.
"""

import tempfile
import webbrowser
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import RewardFLError
from ..metrics import StepMetrics, of_log
from . import logs as pod_logs
from . import submission
from .connection import Connection
from .errors import ClientError, DeletedError, JobFailedError, NotFoundError
from .halt import Halt, HaltedError
from .history import TRAINER, Event, events
from .jobs import Jobs
from .logs import Line, Selection
from .progress import ProgressOption, shown
from .results import REPORT_FILE, Results, StoredFile, checked_endpoint
from .submission import Submittable
from .view import Job, explanation

JobOrName = Job | str
"""A job's name; or the job as it was read, by which another one that has taken its name is told from it."""

JobList = list[Job]
Files = list[StoredFile]
Paths = list[Path]
Events = list[Event]


class Client:
    """RewardFLJobs of a cluster.

    Finds the cluster as kubectl does: $KUBECONFIG or ~/.kube/config, and in a pod the service account. Methods take a job or its
    name; `namespace` is needed only for a name in another namespace than the client's. Every method raises a `ClientError` with
    a message and a hint where the cluster cannot be asked; `RewardFLError` where object storage cannot.

    Args:
        namespace: where jobs are. None: the context's own.
        context: context of the kubeconfig. None: the current one.
        kubeconfig: file to read instead.
        endpoint: URL at which jobs' S3 service is reached from here. None: as their spec.storage.endpoint says.

    Raises:
        ConfigurationError: there is no kubeconfig, or it cannot be used; or `endpoint` is no URL of a service.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._use(Connection.open(None if kubeconfig is None else str(kubeconfig), context, namespace), endpoint)

    @classmethod
    def over(cls, connection: Connection, endpoint: str | None = None) -> Self:
        """Return a client of a connection that there is already."""
        client = cls.__new__(cls)
        client._use(connection, endpoint)
        return client

    def _use(self, connection: Connection, endpoint: str | None) -> None:
        self.connection, self._endpoint, self._jobs = connection, checked_endpoint(endpoint), Jobs(connection)

    @property
    def namespace(self) -> str:
        """The namespace that is meant when none is named."""
        return self.connection.namespace

    def get(self, job: JobOrName, namespace: str | None = None) -> Job:
        """Return a job as it is now.

        Raises:
            NotFoundError: there is none of that name; says which have one like it.
            DeletedError: `job` was deleted, and another of its name was created.
        """
        if isinstance(job, str):
            return self._jobs.get(job, namespace)
        found = self._jobs.get(job.name, job.namespace)
        if found.metadata.uid != job.metadata.uid:
            raise DeletedError(f"{job.namespace}/{job.name} was deleted, and another of that name was created")
        return found

    def list(self, namespace: str | None = None, *, everywhere: bool = False, selector: str = "") -> JobList:
        """Return the jobs of a namespace, or of all, by namespace and name; `selector` as kubectl's -l."""
        return self._jobs.find(namespace, everywhere=everywhere, selector=selector)

    def submit(
        self,
        job: Submittable,
        namespace: str | None = None,
        *,
        name: str | None = None,
        output: str | None = None,
        suspend: bool = False,
        dry_run: bool = False,
    ) -> Job:
        """Check a job here, create it, and return it.

        Args:
            job: a `RewardFLJob`, a manifest as a mapping, a file or the YAML itself; or a job of the cluster, to be run again.
            namespace: where, instead of the manifest's own namespace or the client's.
            name: another name than the manifest's. A job that was read then needs another `output` as well.
            output: another output than the manifest's.
            suspend: create it suspended; `resume` starts it. That a job that was read is suspended is not taken over.
            dry_run: let the API server check it, and create nothing.

        Raises:
            InvalidJobError: fields are wrong; it names each, its value and what to do. Nothing was sent.
            ExistsError: there is one of that name.
            RefusedError: the API server refuses it.
        """
        manifest = submission.body(job, name=name, namespace=namespace, output=output, suspend=suspend)
        return self._jobs.create(manifest, dry_run=dry_run)

    def check(self, job: Submittable) -> None:
        """Check a job here and by the API server, one that exists as an edit of it; nothing is written.

        Raises:
            InvalidJobError: fields are wrong.
            RefusedError: the API server would refuse it.
        """
        self._jobs.check(submission.body(job))

    def suspend(self, job: JobOrName, namespace: str | None = None) -> Job:
        """Stop a job's pods and keep it: it saves a checkpoint first, and goes on from there when it is resumed.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: `job` was deleted, and another of its name was created. That one is left alone.
        """
        return self._jobs.suspend(*_named(job, namespace))

    def resume(self, job: JobOrName, namespace: str | None = None) -> Job:
        """Let a suspended job go on, from its last checkpoint.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: `job` was deleted, and another of its name was created. That one is left alone.
        """
        return self._jobs.suspend(*_named(job, namespace), value=False)

    def delete(self, job: JobOrName, namespace: str | None = None) -> None:
        """Delete a job with its pods. What it has written to the bucket stays.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: `job` was deleted, and another of its name was created. That one is left alone.
        """
        self._jobs.delete(*_named(job, namespace))

    def watch(self, job: JobOrName, namespace: str | None = None) -> Iterator[Job]:
        """Yield a job as it is now, and each time that it changes; the last one has succeeded or failed.

        A connection that is cut, that expires or stalls, and an API server that is away for up to two minutes, are waited out.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: it was deleted.
        """
        yield from _to_the_end(self._jobs, self.get(job, namespace))

    def wait(
        self,
        job: JobOrName,
        namespace: str | None = None,
        *,
        timeout: float | None = None,
        progress: ProgressOption = False,
    ) -> Job:
        """Wait until a job has succeeded, and return it.

        Args:
            job: the job.
            namespace: its namespace.
            timeout: seconds. A job that is suspended or queued is waited for as well.
            progress: True: show a bar, or lines where that is not possible. A function: call it with the job at every change.

        Raises:
            JobFailedError: it has failed; with the reason, and what to do.
            TimeoutError: it has not ended in that time; it goes on.
            NotFoundError: there is no such job.
            DeletedError: it was deleted.
        """
        last = self.get(job, namespace)
        halt = self.connection.halt.within(timeout)
        show = shown(progress)
        try:
            for now in _to_the_end(Jobs(self.connection.with_halt(halt)), last):
                show(now)
                last = now
        except HaltedError:
            if halt.was_told:
                raise
            where = f"{last.phase or 'new'}{f', step {last.status.progress}' if last.status.progress else ''}"
            raise TimeoutError(f"{last.namespace}/{last.name} has not ended within {timeout:g} s: it is {where}") from None
        finally:
            show.close()
        if last.phase != "Succeeded":
            raise JobFailedError(last, _remedy(last))
        return last

    def logs(  # noqa: PLR0913 - each of them narrows what is shown
        self,
        job: JobOrName,
        namespace: str | None = None,
        *,
        rank: int | None = None,
        node: int | None = None,
        follow: bool = False,
        container: str | None = None,
        previous: bool = False,
        tail: int | None = None,
        timestamps: bool = False,
        progress: Callable[[Job], object] | None = None,
    ) -> Iterator[Line]:
        """Yield what a job's pods have written, node by node; with `follow` as they write it, until the job has ended.

        One that is suspended has not ended: what it writes when it goes on is waited for.

        Args:
            job: the job.
            namespace: its namespace.
            rank: only what this rank wrote.
            node: only of this node.
            follow: go on, over cut connections and restarts.
            container: stage or trainer. None: the trainer, and where it has not started yet the stage.
            previous: of the attempt before the last restart.
            tail: only the last so many lines of each pod.
            timestamps: each line with its time.
            progress: called with the job, about once a second, while it is followed.

        Raises:
            NotFoundError: there is no such job, rank, node or pod.
        """
        found = self.get(job, namespace)
        if rank is not None:
            node = pod_logs.node_of_rank(found, rank)
        elif node is not None and node >= found.nodes:
            raise NotFoundError(f"{found.name} has no node {node}", f"its nodes are 0 to {found.nodes - 1}")
        wanted = Selection(node, rank, container, previous, tail, timestamps)
        if follow:
            yield from pod_logs.follow(self._jobs, found, wanted, progress or (lambda job: None))
        else:
            yield from pod_logs.read(self.connection, found, wanted)

    def events(self, job: JobOrName, namespace: str | None = None) -> Events:
        """Return the events of a job, the oldest first.

        Raises:
            NotFoundError: there is no such job.
        """
        return events(self.connection, self.get(job, namespace))

    def metrics(self, job: JobOrName, namespace: str | None = None, *, follow: bool = False) -> Iterator[StepMetrics]:
        """Yield every logged step so far, in order; with `follow` also those to come, until the job has ended.

        One that is suspended has not ended: it is waited for.

        Up to the last checkpoint they are read from the output, with all values, by the credentials of the caller; what came
        later, or all where the output cannot be read, from the log of the main rank, with the values that it shows.

        Raises:
            NotFoundError: there is no such job.
            MissingExtraError: neither can be read: boto3 is not installed, and the pods are gone.
            RewardFLError: neither can be read: the storage refuses, and the pods are gone.
        """
        found, last = self.get(job, namespace), -1
        unreadable: Exception | None = None
        try:
            stored = Results(found, self._endpoint, self.connection.halt).metrics()
        except (ClientError, RewardFLError) as error:
            stored, unreadable = [], error
        for step in stored:
            yield step
            last = step.step
        if found.phase == "Succeeded" and unreadable is None:
            return
        try:
            for line in self.logs(found, rank=0, container=TRAINER, follow=follow and not found.has_ended):
                logged = of_log(line.text)
                if logged is not None and logged.step > last:
                    yield logged
                    last = logged.step
        except NotFoundError:
            self.get(found)  # where the job itself is gone, it says so
            if unreadable is not None:
                raise unreadable from None

    def files(self, job: JobOrName, namespace: str | None = None) -> Files:
        """Return the files in a job's output, by name.

        Raises:
            NotFoundError: there is no such job.
            MissingExtraError: boto3 is not installed.
            RewardFLError: the storage cannot be read.
        """
        return Results(self.get(job, namespace), self._endpoint, self.connection.halt).files()

    def download(
        self,
        job: JobOrName,
        to: str | Path,
        namespace: str | None = None,
        *,
        patterns: Iterable[str] | str = (),
        progress: Callable[[Path], object] | None = None,
    ) -> Paths:
        """Fetch files of a job's output to a folder, and return where they are.

        Each file appears when it is whole. One that is there already, as old and as large as the one in the output, is not
        fetched again: what was interrupted goes on when it is asked for again. Names that would lead out of the folder, or that
        no folder can hold, are left out.

        Args:
            job: the job.
            to: the folder; it is made where it is missing.
            namespace: the job's namespace.
            patterns: names below the output, with * and ?, or folders: `lora.safetensors`, `samples`, `checkpoints/step-1*`.
                None given: everything.
            progress: called with each file as soon as it is there.

        Raises:
            NotFoundError: there is no such job, or nothing of that name in its output.
            MissingExtraError: boto3 is not installed.
            RewardFLError: the storage cannot be read, or the folder has a link that leads out of it.
            OSError: the folder cannot be written to.
        """
        chosen = [patterns] if isinstance(patterns, str) else patterns
        results = Results(self.get(job, namespace), self._endpoint, self.connection.halt)
        return results.download(Path(to).expanduser(), chosen, progress)

    def report(
        self, job: JobOrName, namespace: str | None = None, *, to: str | Path | None = None, open_browser: bool = True
    ) -> Path:
        """Fetch a job's report, open it in the browser, and return where it is.

        Args:
            job: the job.
            namespace: its namespace.
            to: file to write. None: one in the folder for temporary files.
            open_browser: False: only fetch it.

        Raises:
            NotFoundError: there is no such job, or it has no report yet.
            MissingExtraError: boto3 is not installed.
            RewardFLError: the storage cannot be read.
        """
        found = self.get(job, namespace)
        target = Path(tempfile.mkdtemp(prefix="rewardfl-")) / REPORT_FILE if to is None else Path(to).expanduser()
        page = Results(found, self._endpoint, self.connection.halt).report(target).resolve()
        if open_browser:
            webbrowser.open(page.as_uri())
        return page

    def close(self) -> None:
        """Close the connections. Nothing needs it; it is as the end of a `with` block."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def with_halt(self, halt: Halt) -> "Client":
        """Return the same client, of which the waiting is ended by `halt`."""
        return Client.over(self.connection.with_halt(halt), self._endpoint)


def _named(job: JobOrName, namespace: str | None) -> tuple[str, str | None, str | None]:
    """Return name, namespace, and of a job that was read its uid."""
    return (job, namespace, None) if isinstance(job, str) else (job.name, job.namespace, job.metadata.uid)


def _to_the_end(jobs: Jobs, job: Job) -> Iterator[Job]:
    """Yield a job that was read just now, and every change of it, until it has ended."""
    for now in jobs.changes(job):
        yield now
        if now.has_ended:
            return


def _remedy(job: Job) -> str:
    """What to do about a job that has failed: its own hint, or what the reason's explanation says."""
    failure = job.status.failure
    if failure is not None and failure.hint and failure.reason == job.reason:
        return failure.hint
    known = explanation(job.reason)
    return known.remedy if known is not None else f"see rewardfl describe {job.name} -n {job.namespace}"
