"""Runs the reconciler: what changes goes through one queue, and a slow comparison with the API server catches what was missed."""

import asyncio
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any

import aiohttp

from . import logs
from .cluster import CONFIG_MAPS, JOBS, PODS, REWARDFLJOBS, SUPPORTING, ApiError, Cluster, Kind
from .informer import WHOLE, Informer, Key, View
from .liveness import Liveness
from .names import CHILD_SELECTOR, CONFIG_SELECTOR, PROGRESS_SELECTOR
from .queue import WorkQueue
from .reconcile import Informers, Reconciler
from .settings import OperatorSettings
from .store import JobStore, key_of
from .supporting import STUBS

Raw = dict[str, Any]

LONGEST_TURN_SECONDS = 300.0
"""No turn of a job takes longer; it is broken off and comes again. Each of its requests has a time limit of its own."""

logger = logging.getLogger(__name__)


class Controller:
    """Everything of the operator but kopf.

    Args:
        cluster: the API server.
        settings: what the operator was told.
    """

    def __init__(self, cluster: Cluster, settings: OperatorSettings) -> None:
        self._cluster, self._settings = cluster, settings
        self._namespaces: list[str | None] = [*settings.watch_namespaces] or [None]
        self.metrics = cluster.metrics
        self._queue: WorkQueue[Key] = WorkQueue(waited=self.metrics.queue_wait_seconds.observe)
        self.store = JobStore()
        self.informers = self._make_informers()
        self._reconciler = Reconciler(cluster, settings, self.store, self.informers)
        self.started = asyncio.Event()
        """Set when every task of its own runs, and everything that decisions depend upon has been listed once."""
        self._liveness = Liveness(settings.watch_silence_seconds)
        self._missed_since: dict[Key, float] = {}
        self._watched: dict[Key, str] = {}

    def seen(self, event_type: str | None, body: Raw) -> None:
        """Take in what kopf's watch has told of a RewardFLJob."""
        key = key_of(body)
        if event_type == "DELETED":
            self.store.drop(key, body["metadata"]["uid"])
            self._watched.pop(key, None)
            self._queue.add(key)
        else:
            self._watched[key] = body["metadata"]["resourceVersion"]
            if self.store.put(body):  # and not merely the echo of a write of our own
                # What starts pods goes before what only tells of them.
                self._queue.add(key, urgent=not body.get("status"))
        self._missed_since.pop(key, None)

    async def run(self) -> None:
        """Run for ever; ends with the first part that fails for good."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self.informers.all:
                tasks.create_task(informer.run())
            await asyncio.gather(*(informer.synced.wait() for informer in self.informers.all))
            tasks.create_task(self._resync_for_ever())
            for _ in range(self._settings.workers):
                tasks.create_task(self._work_for_ever())
            self.started.set()

    def trouble(self) -> str | None:
        """Return why the operator should be started again; None when it is well."""
        patience = f"for more than {self._liveness.patience_seconds:.0f} s, though the API server answers"
        silent = self._liveness.are_dead(informer.last_contact for informer in self.informers.all)
        if silent:
            return f"{silent} watches have been silent {patience}"
        if self._liveness.are_dead(self._missed_since.values()):
            return f"the watch of RewardFLJobs has missed a change {patience}"
        return None

    def jobs_by_phase(self) -> Mapping[tuple[str, str], int]:
        """Count the jobs by namespace and phase."""
        return self.store.by_phase()

    def queue_depth(self) -> int:
        """Return how many jobs wait for their turn."""
        return len(self._queue)

    def watch_ages(self) -> Mapping[str, float]:
        """Return for how many seconds the watches of a kind have told nothing; of RewardFLJobs, the age of what was missed.

        A replica that stands by watches nothing, so there is nothing to tell.
        """
        if not self.started.is_set():
            return {}
        now = monotonic()
        missed = {REWARDFLJOBS.plural: max((now - since for since in self._missed_since.values()), default=0.0)}
        ages = [(informer.kind.plural, now - informer.last_contact) for informer in self.informers.all]
        return missed | {kind: max(age for each, age in ages if each == kind) for kind, _ in ages}

    def _make_informers(self) -> Informers:
        silence = self._settings.watch_silence_seconds

        def make(kind: Kind, selector: str, view: View = WHOLE) -> tuple[Informer, ...]:
            common = (self._cluster, kind, selector, self._queue.add)
            return tuple(Informer(*common, namespace, silence, view) for namespace in self._namespaces)

        watched = [(CONFIG_MAPS, CONFIG_SELECTOR), *((kind, CHILD_SELECTOR) for kind in SUPPORTING)]
        supporting = [informer for each in watched for informer in make(*each, STUBS)]
        jobs, pods, progress = make(JOBS, CHILD_SELECTOR), make(PODS, CHILD_SELECTOR), make(CONFIG_MAPS, PROGRESS_SELECTOR)
        return Informers(jobs, pods, progress, tuple(supporting))

    async def _work_for_ever(self) -> None:
        while True:
            await self._work(await self._queue.get())

    async def _work(self, key: Key) -> None:
        """Give one job its turn. Whatever is wrong with it stays with it."""
        with logs.about(*key), self.metrics.reconcile_seconds.time():
            try:
                async with asyncio.timeout(LONGEST_TURN_SECONDS):
                    again = await self._reconciler.reconcile(key)
            except ApiError as error:
                delay = self._failed(key, str(error.status), error.retry_after or 0.0)
                logger.warning("%s/%s: the API server answered %s; again in %.1f s", *key, error, delay)
            except (aiohttp.ClientError, TimeoutError) as error:
                delay = self._failed(key, "connection")
                logger.warning("%s/%s: %s; again in %.1f s", *key, error or type(error).__name__, delay)
            except Exception:
                delay = self._failed(key)
                logger.exception("%s/%s: could not be reconciled; again in %.1f s", *key, delay)
            else:
                self._end_turn(key, again)

    def _failed(self, key: Key, answer: str = "", at_least_seconds: float = 0.0) -> float:
        """Count a turn that failed, by what the API server answered if it was the reason, and say when the next one comes."""
        if answer:
            self.metrics.api_retries.labels(answer).inc()
        cause = "connection" if answer == "connection" else "api" if answer else "internal"
        self.metrics.reconcile_errors.labels(cause).inc()
        return self._queue.retry(key, at_least_seconds)

    def _end_turn(self, key: Key, again: float | None) -> None:
        if self.store.get(key) is None:
            self._reconciler.forget(key)
            self._queue.forget(key)
            return
        self._queue.done(key)
        if again is not None:
            self._queue.add(key, again)

    async def _resync_for_ever(self) -> None:
        """Compare the list of jobs with what is known, now and then."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await self._resync()
                self._liveness.answered()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                self._liveness.failed()
                logger.warning("resync: %s; again in %.0f s", error or type(error).__name__, self._settings.resync_seconds)

    async def _resync(self) -> None:
        """Take in what the watch has missed, and remember since when it has."""
        before, listed = self.store.known(), set[Key]()
        for namespace in self._namespaces:
            async for page in self._cluster.list_pages(REWARDFLJOBS, namespace):
                for body in page.get("items") or []:
                    listed.add(key_of(body))
                    self._compare(body)
        for key in before - listed:
            self.store.drop(key)
            self._watched.pop(key, None)
            self._missed_since.pop(key, None)
            self._queue.add(key)

    def _compare(self, body: Raw) -> None:
        key, version = key_of(body), body["metadata"]["resourceVersion"]
        if self._watched.get(key) != version:
            self._missed_since.setdefault(key, monotonic())
        else:
            self._missed_since.pop(key, None)
        if self.store.put(body):
            self._queue.add(key)
