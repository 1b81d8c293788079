"""Keeps a copy of the objects of one kind that carry a label: list once, then watch, and again after every interruption.

It tells whom a change concerns and holds what was seen, slimmed down. It asks for nothing but its own label: on a large
cluster the rest would fill the memory.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any

import aiohttp

from .cluster import OPENED, ApiError, Cluster, Kind, WatchExpired
from .names import JOB_LABEL

Raw = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a RewardFLJob."""

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0

logger = logging.getLogger(__name__)


class Informer:
    """A copy of the objects of one kind, by the job that they belong to.

    Args:
        cluster: the API server.
        kind: what to watch.
        selector: label selector, evaluated by the server.
        changed: called with the job that a change concerns.
        namespace: the only namespace to watch; None for all.
        silence_seconds: after which a watch that says nothing is opened anew.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        selector: str,
        changed: Callable[[Key], None],
        namespace: str | None = None,
        silence_seconds: float = 70.0,
    ) -> None:
        self._cluster, self.kind, self._selector = cluster, kind, selector
        self._changed, self._namespace, self._silence = changed, namespace, silence_seconds
        self._objects: dict[Key, dict[str, Raw]] = {}
        self.synced = asyncio.Event()
        self.last_contact = monotonic()
        """When the API server was last heard of on this watch (seconds of the monotonic clock)."""

    def of(self, job: Key) -> tuple[Raw, ...]:
        """Return the objects that belong to `job`."""
        return tuple(self._objects.get(job, {}).values())

    async def run(self) -> None:
        """List and watch, for ever."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                version = await self._list()
                pause = FIRST_PAUSE_SECONDS
                while True:
                    version = await self._follow(version)
            except WatchExpired:
                logger.debug("%s: the watch expired, listing again", self.kind.plural)
                continue
            except (ApiError, aiohttp.ClientError, TimeoutError, ValueError) as error:
                logger.warning("%s: %s; listing again in %.1f s", self.kind.plural, error or type(error).__name__, pause)
            self._cluster.metrics.api_retries.labels("watch").inc()
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _list(self) -> str:
        """Replace the copy by what there is now, and return its version."""
        found: dict[Key, dict[str, Raw]] = {}
        version = ""
        async for page in self._cluster.list_pages(self.kind, self._namespace, self._selector):
            version = page["metadata"]["resourceVersion"]
            for item in page.get("items") or []:
                self._put(found, item)
        concerned = set(self._objects) | set(found)
        before, self._objects = self._objects, found
        self._tell(key for key in concerned if _versions(before.get(key)) != _versions(found.get(key)))
        self.last_contact = monotonic()
        self.synced.set()
        return version

    async def _follow(self, version: str) -> str:
        """Take in changes until the watch ends or falls silent, and return the version to go on from."""
        opened = False
        try:
            async for event in self._cluster.watch(self.kind, self._namespace, self._selector, version, self._silence):
                opened, self.last_contact = True, monotonic()
                if event["type"] != OPENED:
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._take(event)
        except TimeoutError:
            # Where nothing of a kind has ever changed the API server sends no bookmarks either, so silence alone is no fault.
            if not opened:
                raise
        return version

    def _take(self, event: Raw) -> None:
        """Take in one change."""
        key = job_of(event["object"])
        if event["type"] == "BOOKMARK" or key is None:
            return
        if event["type"] == "DELETED":
            self._drop(key, event["object"]["metadata"]["name"])
        else:
            self._put(self._objects, event["object"])
        self._tell([key])

    def _put(self, objects: dict[Key, dict[str, Raw]], item: Raw) -> None:
        key = job_of(item)
        if key is not None:
            objects.setdefault(key, {})[item["metadata"]["name"]] = slim(item)

    def _drop(self, key: Key, name: str) -> None:
        of_job = self._objects.get(key, {})
        of_job.pop(name, None)
        if not of_job:
            self._objects.pop(key, None)

    def _tell(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._changed(key)


def job_of(item: Raw) -> Key | None:
    """Return the job that an object belongs to by its label."""
    metadata = item["metadata"]
    name = (metadata.get("labels") or {}).get(JOB_LABEL)
    return (metadata["namespace"], name) if name else None


def slim(item: Raw) -> Raw:
    """Return `item` without what nobody here looks at: most of a pod is its spec and the record of who wrote which field."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    spec = {key: value for key, value in (item.get("spec") or {}).items() if key in KEPT_OF_SPEC}
    return {**item, "metadata": metadata, "spec": spec}


KEPT_OF_SPEC = ("suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "completions", "parallelism")


def _versions(objects: dict[str, Raw] | None) -> dict[str, str]:
    return {name: item["metadata"]["resourceVersion"] for name, item in (objects or {}).items()}
