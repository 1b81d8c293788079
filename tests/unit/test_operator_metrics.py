"""What Prometheus is told, read through the operator's own port."""

from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rewardfl_api import __version__
from rewardfl_operator import health
from rewardfl_operator.cluster import Cluster
from rewardfl_operator.controller import Controller
from rewardfl_operator.metrics import Metrics
from rewardfl_operator.queue import WorkQueue
from rewardfl_operator.settings import OperatorSettings
from rewardfl_operator.store import JobStore

NAMES = {
    "rewardfl_reconcile_duration_seconds",
    "rewardfl_reconcile_errors",
    "rewardfl_queue_wait_seconds",
    "rewardfl_status_writes",
    "rewardfl_guard_trips",
    "rewardfl_api_requests",
    "rewardfl_api_retries",
    "rewardfl_leader",
    "rewardfl_build_info",
    "rewardfl_jobs",
    "rewardfl_queue_depth",
    "rewardfl_watch_age_seconds",
}


class Seen:
    """What a controller knows."""

    def __init__(self) -> None:
        self.store = JobStore()

    def jobs_by_phase(self) -> Mapping[tuple[str, str], int]:
        return self.store.by_phase()

    def queue_depth(self) -> int:
        return 3

    def watch_ages(self) -> Mapping[str, float]:
        return {"pods": 7.5}


def job(name: str, status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ml", "resourceVersion": "1", "uid": name}, "status": status}


@asynccontextmanager
async def served(metrics: Metrics) -> Any:
    runner, port = await health.serve(0, lambda: None, lambda: None, metrics.registry)
    try:
        yield f"http://127.0.0.1:{port}/metrics"
    finally:
        await runner.cleanup()


async def scrape(metrics: Metrics) -> dict[str, Any]:
    async with served(metrics) as url, aiohttp.ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200
        return {family.name: family for family in text_string_to_metric_families(await answer.text())}


def values(family: Any) -> Iterator[tuple[dict[str, str], float]]:
    return ((sample.labels, sample.value) for sample in family.samples if not sample.name.endswith("_created"))


async def test_every_promised_metric_is_served() -> None:
    metrics = Metrics()
    metrics.observe(Seen())

    assert set(await scrape(metrics)) >= NAMES


async def test_jobs_are_counted_by_phase_when_they_are_asked_for_whatever_their_status_holds() -> None:
    metrics, seen = Metrics(), Seen()
    metrics.observe(seen)
    for name, status in (
        ("a", {"phase": "Training"}),
        ("b", {"phase": "Training"}),
        ("c", None),
        ("d", "broken"),
        ("e", {"phase": 5}),
    ):
        seen.store.put(job(name, status))

    found = await scrape(metrics)

    jobs = {(labels["namespace"], labels["phase"]): value for labels, value in values(found["rewardfl_jobs"])}
    assert jobs == {("ml", "Training"): 2.0, ("ml", "Pending"): 3.0}
    assert list(values(found["rewardfl_queue_depth"])) == [({}, 3.0)]
    assert list(values(found["rewardfl_watch_age_seconds"])) == [({"kind": "pods"}, 7.5)]
    assert list(values(found["rewardfl_build_info"])) == [({"version": __version__}, 1.0)]


async def test_two_operators_in_a_process_share_no_counters() -> None:
    first, second = Metrics(), Metrics()
    first.status_writes.inc()

    found = await scrape(second)

    assert list(values(found["rewardfl_status_writes"])) == [({}, 0.0)]


async def test_the_queue_tells_by_how_much_a_turn_was_late() -> None:
    waited: list[float] = []
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0, waited=waited.append)
    queue.add("a", -2.0)

    await queue.get()

    assert waited == [pytest.approx(2.0, abs=0.5)]


async def test_a_replica_that_stands_by_tells_no_age_of_watches_that_it_does_not_have() -> None:
    controller = Controller(Cluster(None), OperatorSettings())

    assert controller.watch_ages() == {}

    controller.started.set()
    assert {"rewardfljobs", "jobs", "pods", "configmaps"} <= controller.watch_ages().keys()
