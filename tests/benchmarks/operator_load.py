"""The load of `make bench-operator`: jobs, and the nodes, trainers and people that a control plane without nodes lacks.

It has to be cheap: it shares the machine with the API server and with the operator that is measured.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from rewardfl_api.progress import PROGRESS_KEY
from rewardfl_operator.cluster import CONFIG_MAPS, MERGE_PATCH, PODS, Cluster, Kind
from rewardfl_operator.names import JOB_LABEL
from tests.integration.operator_harness import NODE, manifest

Raw = dict[str, Any]

NAMESPACES = tuple(f"team-{number}" for number in range(10))
CONCURRENT_REQUESTS = 16
WATCH_SILENCE_SECONDS = 120.0


def job(prefix: str, number: int) -> Raw:
    """The RewardFLJob of that number, with one pod. Neighbours are in different namespaces."""
    body = manifest(f"{prefix}-{number:04}", nodes=1)
    body["metadata"]["namespace"] = NAMESPACES[number % len(NAMESPACES)]
    return body


class Load(Cluster):
    """A cluster administrator's connection that also does what kubelets and trainers do."""

    async def run_pods(self, pods: list[Raw]) -> None:
        """Bind the pods to the node, and say that their models are staged and their trainers run."""
        free = asyncio.Semaphore(CONCURRENT_REQUESTS)

        async def run_one(pod: Raw) -> None:
            async with free:
                await self._run_pod(pod["metadata"]["namespace"], pod["metadata"]["name"])

        await asyncio.gather(*map(run_one, pods))

    async def report(self, namespace: str, name: str, step: int, total: int) -> None:
        """Report progress, as rank 0 of the job does."""
        metrics = {"reward": 0.6, "loss": 0.1, "kl": 0.01, "gradNorm": 1.0, "secondsPerStep": 5.0}
        document = {"phase": "Training", "time": now(), "step": step, "totalSteps": total, "metrics": metrics}
        body = {"data": {PROGRESS_KEY: json.dumps(document)}}
        path = CONFIG_MAPS.path(namespace, f"{name}-progress")
        await self._json(self._request("patch", CONFIG_MAPS, path, body, headers=MERGE_PATCH))

    async def _run_pod(self, namespace: str, name: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self._json(self._request("create", PODS, PODS.path(namespace, name, "binding"), binding))
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": time, "finishedAt": time}
        status = {
            "phase": "Running",
            "startTime": time,
            "initContainerStatuses": [_container("stage", {"terminated": ended})],
            "containerStatuses": [_container("trainer", {"running": {"startedAt": time}})],
        }
        path = PODS.path(namespace, name, "status")
        await self._json(self._request("patch", PODS, path, {"status": status}, headers=MERGE_PATCH))


class Arrivals:
    """When each object of a kind was first seen, by this process's clock."""

    def __init__(self, load: Load, kind: Kind, *, selector: str = JOB_LABEL, each: Callable[[Raw], None] | None = None) -> None:
        self._load, self._kind, self._selector, self._each = load, kind, selector, each
        self.first: dict[str, float] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Arrivals"]:
        """Watch within the block; what is there before counts as nothing."""
        version = ""
        async for page in self._load.list_pages(self._kind, None, self._selector, metadata_only=True):
            version = page["metadata"]["resourceVersion"]
        task = asyncio.create_task(self._follow(version))
        try:
            yield self
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(self, version: str) -> None:
        whole = self._each is not None
        while True:
            with suppress(TimeoutError):
                watch = self._load.watch(
                    self._kind, None, self._selector, version, WATCH_SILENCE_SECONDS, metadata_only=not whole
                )
                async for event in watch:
                    if "object" not in event:
                        continue
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._take(event["object"])

    def _take(self, item: Raw) -> None:
        self.first.setdefault(item["metadata"]["name"], monotonic())
        if self._each is not None:
            self._each(item)


async def until(what: str, check: Callable[[], Any], patience_seconds: float = 300.0) -> None:
    """Wait until `check` returns something true."""
    end = monotonic() + patience_seconds
    while not check():
        if monotonic() > end:
            raise TimeoutError(f"not within {patience_seconds:.0f} s: {what}")
        await asyncio.sleep(0.1)


def now() -> str:
    """The time as trainers write it."""
    return datetime.now(UTC).isoformat()


def _container(name: str, state: Raw) -> Raw:
    return {"name": name, "state": state, "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
