"""Keeps a copy of the objects of one kind that carry a label: list once, then watch, and again after every interruption.

It tells whom a change concerns and holds what was seen, slimmed down. It asks for nothing but its own label: on a large
cluster the rest would fill the memory.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
        view: what of the objects.
    """

    def __init__(
        self,
        cluster: Cluster,
        kind: Kind,
        selector: str,
        changed: Callable[[Key], None],
        namespace: str | None = None,
        silence_seconds: float = 70.0,
        view: "View | None" = None,
    ) -> None:
        self._cluster, self.kind, self._selector = cluster, kind, selector
        self._changed, self._namespace, self._silence = changed, namespace, silence_seconds
        self._view = view or WHOLE
        self._objects: dict[Key, dict[str, Raw]] = {}
        self.synced = asyncio.Event()
        self.last_contact = monotonic()
        """When the API server was last heard of on this watch (seconds of the monotonic clock)."""

    def of(self, job: Key) -> tuple[Raw, ...]:
        """Return the objects that belong to `job`."""
        return tuple(self._objects.get(job, {}).values())

    def get(self, job: Key, name: str) -> Raw | None:
        """Return one of them; None when there is none of that name."""
        return self._objects.get(job, {}).get(name)

    def covers(self, namespace: str) -> bool:
        """Whether it watches this namespace."""
        return self._namespace in (None, namespace)

    def learn(self, item: Raw) -> None:
        """Take in the answer to a write of our own, before the watch tells of it."""
        if not self._is_known(item):
            self._put(self._objects, item)

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
        async for page in self._cluster.list_pages(
            self.kind, self._namespace, self._selector, metadata_only=self._view.metadata_only
        ):
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
            async for event in self._cluster.watch(
                self.kind, self._namespace, self._selector, version, self._silence, metadata_only=self._view.metadata_only
            ):
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
            self._drop(key, event["object"]["metadata"])
        elif self._is_known(event["object"]):
            return
        else:
            self._put(self._objects, event["object"])
        self._tell([key])

    def _put(self, objects: dict[Key, dict[str, Raw]], item: Raw) -> None:
        key = job_of(item)
        if key is not None:
            objects.setdefault(key, {})[item["metadata"]["name"]] = self._view.keep(item)

    def _is_known(self, item: Raw) -> bool:
        """Whether this version, or a newer one, is there already: the answer to a write overtakes the watch."""
        key = job_of(item)
        known = self.get(key, item["metadata"]["name"]) if key is not None else None
        return known is not None and version_of(known) >= version_of(item)

    def _drop(self, key: Key, metadata: Raw) -> None:
        """Forget an object, unless another one of its name has been made since."""
        of_job = self._objects.get(key, {})
        known = of_job.get(metadata["name"])
        if known is not None and known["metadata"].get("uid") == metadata.get("uid"):
            del of_job[metadata["name"]]
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


def version_of(item: Raw) -> int:
    """The resource version as a number: Kubernetes guarantees its order since 1.35, and etcd's revisions always had it."""
    text = item["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0


def slim(item: Raw) -> Raw:
    """Return `item` without what nobody here looks at: most of a pod is its spec and the record of who wrote which field."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    spec = {key: value for key, value in (item.get("spec") or {}).items() if key in KEPT_OF_SPEC}
    return {**item, "metadata": metadata, "spec": spec}


@dataclass(frozen=True)
class View:
    """How much of its objects an informer asks for and keeps."""

    keep: Callable[[Raw], Raw]
    metadata_only: bool = False


WHOLE = View(slim)
KEPT_OF_SPEC = ("suspend", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "completions", "parallelism")


def _versions(objects: dict[str, Raw] | None) -> dict[str, str]:
    return {name: item["metadata"]["resourceVersion"] for name, item in (objects or {}).items()}
