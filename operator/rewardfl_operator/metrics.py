"""What the operator tells Prometheus: what it does, how long that takes, and where its jobs stand.

The registry is the caller's, so that nothing is global and tests may have as many as they like. Metrics never decide anything.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rewardfl_api import __version__

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Observable(Protocol):
    """What is looked at when Prometheus asks, and costs nothing until then."""

    def jobs_by_phase(self) -> Mapping[tuple[str, str], int]:
        """Return how many jobs there are, by namespace and phase."""

    def queue_depth(self) -> int:
        """Return how many jobs wait for their turn."""

    def watch_ages(self) -> Mapping[str, float]:
        """Return by kind for how many seconds its watch has told nothing."""


class Metrics:
    """The operator's instruments.

    Args:
        registry: where they are registered; a new one by default.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self.reconcile_seconds = self._histogram("rewardfl_reconcile_duration_seconds", "Time that a job's turn took.")
        self.reconcile_errors = self._counter("rewardfl_reconcile_errors", "Turns that failed and come again.", "cause")
        self.queue_wait_seconds = self._histogram("rewardfl_queue_wait_seconds", "Time by which a job's turn came too late.")
        self.status_writes = self._counter("rewardfl_status_writes", "Statuses written.")
        self.guard_trips = self._counter("rewardfl_guard_trips", "Runs that their guard has ended or suspended.", "reason")
        self.api_requests = self._counter("rewardfl_api_requests", "Requests to the API server.", "verb", "kind", "code")
        self.api_retries = self._counter("rewardfl_api_retries", "Requests that are made again after a failure.", "reason")
        self.leader = Gauge("rewardfl_leader", "Whether this replica is the one that acts.", registry=self.registry)
        build = Gauge("rewardfl_build_info", "The operator's version.", ["version"], registry=self.registry)
        build.labels(__version__).set(1)
        ProcessCollector(registry=self.registry)

    def observe(self, source: Observable) -> None:
        """Show what `source` knows at the moment of each scrape."""
        self.registry.register(_Snapshot(source))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self.registry, buckets=SECONDS_BUCKETS)


class _Snapshot(Collector):
    """Reads an Observable at each scrape."""

    def __init__(self, source: Observable) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without reading them, so that registering does not read what is not there yet."""
        return self._families({}, 0, {})

    def collect(self) -> Iterable[Metric]:
        """Return the metrics as they are now."""
        source = self._source
        return self._families(source.jobs_by_phase(), source.queue_depth(), source.watch_ages())

    @staticmethod
    def _families(jobs: Mapping[tuple[str, str], int], depth: int, ages: Mapping[str, float]) -> Iterator[Metric]:
        by_phase = GaugeMetricFamily("rewardfl_jobs", "RewardFLJobs by phase.", labels=["namespace", "phase"])
        for labels, count in jobs.items():
            by_phase.add_metric(labels, count)
        yield by_phase
        yield GaugeMetricFamily("rewardfl_queue_depth", "Jobs that wait for their turn.", value=depth)
        silence = GaugeMetricFamily("rewardfl_watch_age_seconds", "Time since a watch has told anything.", labels=["kind"])
        for kind, age in ages.items():
            silence.add_metric([kind], age)
        yield silence
