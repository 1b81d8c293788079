"""Reads, writes and watches RewardFLJobs. A cut or stalled watch goes on by itself; nothing is missed that still holds."""

import contextlib
import json
import time
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import urllib3
from kubernetes.client import ApiException, CustomObjectsApi, V1DeleteOptions, V1Preconditions

from ..job import GROUP, KIND, PLURAL, VERSION
from .connection import CONNECT_SECONDS, Connection
from .errors import ClientError, DeletedError, ExistsError, NotFoundError, RefusedError, UnreachableError
from .view import Job, Raw

PAGE = 500
FIELD_MANAGER = "rewardfl-cli"
WATCH_SECONDS = 45
"""The server ends a watch after this long, and it is begun anew: one that has died without a word costs no more than this."""

WATCH_MARGIN_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
"""How long a watch goes on trying while the API server cannot be reached."""

SHORTEST_WATCH_SECONDS = 0.5
"""So that something that cuts every watch at once does not make a storm of requests."""

BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 5.0)


class Jobs:
    """The RewardFLJobs of a cluster. Namespaces that are not named are the connection's."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._api: Any = CustomObjectsApi(connection.api)  # the types of the stubs lack what is used here

    @property
    def _timeouts(self) -> tuple[float, float]:
        return self.connection.timeouts

    def get(self, name: str, namespace: str | None = None) -> Job:
        """Return one job.

        Raises:
            NotFoundError: there is none of that name; says which have one like it.
            ClientError: the cluster cannot be asked.
        """
        namespace = namespace or self.connection.namespace
        try:
            with self.connection.errors(_named(namespace, name)):
                answer = self._api.get_namespaced_custom_object(
                    GROUP, VERSION, namespace, PLURAL, name, _request_timeout=self._timeouts
                )
        except NotFoundError as error:
            raise self._with_close_names(error, name, namespace) from error
        return Job(dict(answer))

    def find(self, namespace: str | None = None, *, everywhere: bool = False, selector: str = "") -> list[Job]:
        """Return the jobs of a namespace, or of all, by namespace and name.

        Raises:
            ClientError: the cluster cannot be asked.
        """
        where = {} if everywhere else {"namespace": namespace or self.connection.namespace}
        found: list[Job] = []
        more = ""
        while True:
            answer = self._page(where, limit=PAGE, _continue=more, label_selector=selector)
            found += [Job(item) for item in answer["items"]]
            more = answer["metadata"].get("continue", "")
            if not more:
                return sorted(found, key=lambda job: (job.namespace, job.name))

    def create(self, manifest: Raw, *, dry_run: bool = False) -> Job:
        """Create a job; `dry_run`: only let the server check it.

        Raises:
            ExistsError: there is one of that name.
            RefusedError: the API server refuses it.
            ClientError: the cluster cannot be asked.
        """
        metadata = manifest["metadata"]
        namespace = metadata.get("namespace") or self.connection.namespace
        with self.connection.errors(_named(namespace, metadata["name"])):
            answer = self._api.create_namespaced_custom_object(
                GROUP, VERSION, namespace, PLURAL, manifest, field_manager=FIELD_MANAGER, field_validation="Strict",
                dry_run="All" if dry_run else None, _request_timeout=self._timeouts,
            )  # fmt: skip
        return Job(dict(answer))

    def check(self, manifest: Raw) -> None:
        """Let the API server check a job; one that exists is checked as an edit of it, and nothing is written.

        Raises:
            RefusedError: it would be refused.
            ClientError: the cluster cannot be asked.
        """
        try:
            self.create(manifest, dry_run=True)
        except ExistsError:
            self._patch(manifest["metadata"]["name"], manifest["metadata"].get("namespace"), manifest, dry_run=True)

    def suspend(self, name: str, namespace: str | None = None, uid: str | None = None, *, value: bool = True) -> Job:
        """Set runPolicy.suspend; with `uid` only of that job, and not of another that has taken its name.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: the job of that name is another one.
            ClientError: the cluster cannot be asked.
        """
        patch = {"spec": {"runPolicy": {"suspend": value}}}
        with self._same_only(name, namespace, uid):
            return self._patch(name, namespace, patch if uid is None else {**patch, "metadata": {"uid": uid}})

    def delete(self, name: str, namespace: str | None = None, uid: str | None = None) -> None:
        """Delete a job, with `uid` only that one; everything that was made for it goes with it.

        Raises:
            NotFoundError: there is no such job.
            DeletedError: the job of that name is another one.
            ClientError: the cluster cannot be asked.
        """
        namespace = namespace or self.connection.namespace
        options = None if uid is None else V1DeleteOptions(preconditions=V1Preconditions(uid=uid))
        try:
            with self._same_only(name, namespace, uid), self.connection.errors(_named(namespace, name)):
                self._api.delete_namespaced_custom_object(
                    GROUP, VERSION, namespace, PLURAL, name, body=options, _request_timeout=self._timeouts
                )
        except NotFoundError as error:
            raise self._with_close_names(error, name, namespace) from error

    def watch(self, name: str, namespace: str | None = None) -> Iterator[Job]:
        """Yield the job as it is now, and each time that it changes; see `changes`.

        Raises:
            NotFoundError: there is no such job.
            ClientError: as `changes`.
        """
        yield from self.changes(self.get(name, namespace))

    def changes(self, job: Job) -> Iterator[Job]:
        """Yield a job that was read, and each time that it changes. Ends only by an error, or when the caller stops.

        Raises:
            DeletedError: it was deleted, or another of the same name took its place.
            ClientError: the cluster cannot be asked, and could not for PATIENCE_SECONDS.
            HaltedError: the connection's halt was told to end it.
        """
        yield job
        failed_since: float | None = None
        tries = 0
        while True:
            began = time.monotonic()
            try:
                for newer in self._changes(job):
                    failed_since, tries = None, 0
                    if newer.metadata.resource_version != job.metadata.resource_version:
                        job = newer
                        yield job
                self.connection.halt.pause(max(SHORTEST_WATCH_SECONDS - (time.monotonic() - began), 0))
            except UnreachableError:
                failed_since = failed_since or time.monotonic()
                if time.monotonic() - failed_since > PATIENCE_SECONDS:
                    raise
                self.connection.halt.pause(BACK_OFF_SECONDS[min(tries, len(BACK_OFF_SECONDS) - 1)])
                tries += 1

    def _changes(self, job: Job) -> Iterator[Job]:
        """Yield what one watch sees after a fresh look: whatever the watch before it has missed is found by that."""
        halt = self.connection.halt
        current = self._again(job)
        yield current
        with self.connection.errors(_named(job.namespace, job.name)):
            answer = self._api.list_namespaced_custom_object(
                GROUP, VERSION, job.namespace, PLURAL, field_selector=f"metadata.name={job.name}", watch=True,
                resource_version=current.metadata.resource_version, timeout_seconds=WATCH_SECONDS,
                _preload_content=False, _request_timeout=(CONNECT_SECONDS, halt.at_most(WATCH_SECONDS + WATCH_MARGIN_SECONDS)),
            )  # fmt: skip
        with halt.reading(answer), contextlib.suppress(urllib3.exceptions.HTTPError, OSError):
            for event in _events(answer):
                halt.check()
                if event["type"] == "DELETED":
                    raise _deleted(job)
                if event["type"] == "ERROR":
                    return  # the version is too old to go on from: a fresh look is taken
                yield _same(job, Job(event["object"]))

    def _again(self, job: Job) -> Job:
        try:
            return _same(job, self.get(job.name, job.namespace))
        except NotFoundError as error:
            raise _deleted(job) from error

    @contextlib.contextmanager
    def _same_only(self, name: str, namespace: str | None, uid: str | None) -> Iterator[None]:
        """Say of what the API server refuses that the job is another one than `uid`, where it is."""
        try:
            yield
        except RefusedError:
            if uid is not None and (found := self.get(name, namespace)).metadata.uid != uid:
                raise _replaced(found.namespace, name) from None
            raise

    def _page(self, where: dict[str, str], **query: Any) -> Raw:
        with self.connection.errors(f"{PLURAL}.{GROUP}"):
            if where:
                answer = self._api.list_namespaced_custom_object(
                    GROUP, VERSION, where["namespace"], PLURAL, _request_timeout=self._timeouts, **query
                )
            else:
                answer = self._api.list_custom_object_for_all_namespaces(
                    GROUP, VERSION, PLURAL, _request_timeout=self._timeouts, **query
                )
        return dict(answer)

    def _patch(self, name: str, namespace: str | None, patch: Raw, *, dry_run: bool = False) -> Job:
        namespace = namespace or self.connection.namespace
        try:
            with self.connection.errors(_named(namespace, name)):
                answer = self._api.patch_namespaced_custom_object(
                    GROUP, VERSION, namespace, PLURAL, name, patch, field_manager=FIELD_MANAGER, field_validation="Strict",
                    dry_run="All" if dry_run else None, _content_type="application/merge-patch+json",
                    _request_timeout=self._timeouts,
                )  # fmt: skip
        except NotFoundError as error:
            raise self._with_close_names(error, name, namespace) from error
        return Job(dict(answer))

    def _with_close_names(self, error: NotFoundError, name: str, namespace: str) -> NotFoundError:
        """Say which jobs there are instead. Where they cannot be listed, the error stays as it is."""
        if error.hint:
            return error
        with contextlib.suppress(ClientError, ApiException):
            there = [job.name for job in self.find(namespace)]
            if close := get_close_matches(name, there, n=1, cutoff=0.5):
                return NotFoundError(error.message, f"did you mean {close[0]}?")
            return NotFoundError(error.message, f"namespace {namespace} has {len(there)} jobs")
        return error


def _events(answer: Any) -> Iterator[Raw]:
    """The events of a watch, one a line. What a cut has left half is dropped."""
    buffer = b""
    for part in answer.stream(amt=None, decode_content=True):
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _same(job: Job, found: Job) -> Job:
    if found.metadata.uid != job.metadata.uid:
        raise _replaced(job.namespace, job.name)
    return found


def _replaced(namespace: str, name: str) -> DeletedError:
    return DeletedError(f"{_named(namespace, name)} was deleted, and another of that name was created")


def _deleted(job: Job) -> DeletedError:
    return DeletedError(f"{_named(job.namespace, job.name)} was deleted")


def _named(namespace: str, name: str) -> str:
    return f"{KIND} {namespace}/{name}"
