"""`make bench-operator`: the operator with a thousand jobs on a real control plane; writes docs/benchmarks/operator.{json,md}.

etcd, API server, Job controller, scheduler and garbage collector are real and share the machine's cores with the operator and
this load. Nodes and trainers are played (operator_load.py). The operator runs as the chart installs it, election included.
"""

import argparse
import asyncio
import collections
import json
import math
import os
import statistics
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from rewardfl_api import __version__
from rewardfl_operator.cluster import CONFIG_MAPS, JOBS, PODS, REWARDFLJOBS, SUPPORTING, Kind
from rewardfl_operator.names import CHILD_SELECTOR, JOB_LABEL
from tests.benchmarks.operator_load import NAMESPACES, Arrivals, Load, job, until
from tests.benchmarks.operator_meter import Meter
from tests.benchmarks.operator_report import page
from tests.cluster.build import KUBERNETES
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import say
from tests.integration.operator_harness import NAMESPACE as OPERATOR_NAMESPACE
from tests.integration.operator_harness import Installation

FOLDER = REPOSITORY / "docs" / "benchmarks"
CHILD_KINDS = (CONFIG_MAPS, *SUPPORTING, JOBS)
OBJECTS_OF_A_JOB = {CONFIG_MAPS: 2}
IDLE_SECONDS = 65.0
"""Longer than the time between two resyncs, so that there is one in it."""
REST_SECONDS = 5.0
LATENCY_JOBS, LATENCY_SPACING_SECONDS = 300, 0.1
REPORT_SECONDS, WARM_SECONDS, WATCHED_SECONDS, TOTAL_STEPS = 5.0, 15.0, 60.0, 10_000
SETTINGS: dict[str, Any] = {
    "resyncSeconds": 60,
    "leaderElection": {"enabled": True, "namespace": OPERATOR_NAMESPACE},
}
Numbers = dict[str, Any]


@dataclass
class Bench:
    """A control plane with the chart, a load, and the sizes."""

    installation: Installation
    load: Load
    jobs: int
    running: int

    @classmethod
    @asynccontextmanager
    async def start(cls, jobs: int, running: int) -> AsyncIterator["Bench"]:
        """Start a control plane."""
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            installation = stack.enter_context(Installation.start(folder))
            for name in NAMESPACES:
                installation.cluster.kubectl("create", "namespace", name)
            load = await Load.connect(str(installation.cluster.kubeconfig))
            stack.push_async_callback(load.close)
            yield cls(installation, load, jobs, running)

    def launch(self) -> Meter:
        """Start the operator."""
        return Meter(self.installation.launch(**SETTINGS))

    async def burst(self, meter: Meter) -> Numbers:
        """Create all jobs by one kubectl, and wait for all objects and pods. The Job is the last object of each."""
        say(f"{self.jobs} jobs by kubectl")
        file = self.installation.folder / "jobs.json"
        items = [job("job", number) for number in range(self.jobs)]
        file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}), encoding="utf-8")
        async with Arrivals(self.load, JOBS).watching() as made, Arrivals(self.load, PODS).watching() as pods:
            meter.start()
            await asyncio.to_thread(self.installation.cluster.kubectl, "create", "-f", str(file), timeout_seconds=600)
            created = monotonic() - meter.began
            await until("all Jobs and pods", lambda: min(len(made.first), len(pods.first)) >= self.jobs)
        await self._rest(meter)
        told, requests = monotonic() - meter.began - REST_SECONDS, meter.scrape().writes()
        counts = collections.Counter(kind for kind, _ in await self._versions())
        if any(counts[kind] != self.jobs * OBJECTS_OF_A_JOB.get(kind, 1) for kind in (REWARDFLJOBS, *CHILD_KINDS)):
            raise RuntimeError(f"not all objects were made: {counts}")
        return {
            "kubectl_seconds": created,
            "children_seconds": max(made.first.values()) - meter.began,
            "pods_seconds": max(pods.first.values()) - meter.began,
            "told_seconds": told,
            "requests_a_job": requests / self.jobs,
            "burst_cpu_seconds": meter.cpu_seconds() - meter.cpu_before,
        }

    async def idle(self, meter: Meter) -> Numbers:
        """Count writes while nothing happens."""
        say(f"idle for {IDLE_SECONDS:.0f} s")
        before, versions = meter.scrape(), await self._versions()
        meter.start()
        await asyncio.sleep(IDLE_SECONDS)
        after = meter.scrape()
        listed = after.total("rewardfl_api_requests_total", verb="list", kind="rewardfljobs") - before.total(
            "rewardfl_api_requests_total", verb="list", kind="rewardfljobs"
        )
        if not listed:
            raise RuntimeError("there was no resync while idle")
        changed = _changed(versions, await self._versions())
        return {"idle_writes": max(after.writes() - before.writes(), changed), "idle_cpu_cores": meter.cores()}

    async def restart(self, old: Meter) -> tuple[Meter, Numbers]:
        """End the operator, start it again, and wait until it has looked at every job."""
        say("restart")
        old.operator.stop()
        versions, began = await self._versions(), monotonic()
        meter = await asyncio.to_thread(self.launch)
        sample = meter.scrape()
        while not (sample.turns() >= self.jobs and sample.is_at_rest()):
            await asyncio.sleep(0.2)
            sample = meter.scrape()
        seconds = monotonic() - began
        await asyncio.sleep(5)
        writes = max(meter.scrape().writes(), _changed(versions, await self._versions()))
        return meter, {"restart_seconds": seconds, "restart_writes": writes, "restart_cpu_seconds": meter.cpu_seconds()}

    async def latency(self) -> Numbers:
        """Create jobs at a steady pace, and measure until the child Job of each is seen."""
        say(f"{LATENCY_JOBS} jobs, {1 / LATENCY_SPACING_SECONDS:.0f} a second")
        sent: dict[str, float] = {}

        async def send(body: dict[str, Any]) -> None:
            sent[body["metadata"]["name"]] = monotonic()
            await self.load.create(body)

        async with Arrivals(self.load, JOBS).watching() as seen, asyncio.TaskGroup() as tasks:
            began = monotonic()
            for number in range(LATENCY_JOBS):
                await asyncio.sleep(began + number * LATENCY_SPACING_SECONDS - monotonic())
                tasks.create_task(send(job("paced", number)))
            await until("a Job for each", lambda: len(sent) == LATENCY_JOBS and sent.keys() <= seen.first.keys())
        seconds = sorted(seen.first[name] - sent[name] for name in sent)
        return {
            "apply_to_child_p50_seconds": statistics.median(seconds),
            "apply_to_child_p99_seconds": seconds[math.ceil(0.99 * len(seconds)) - 1],
            "apply_to_child_max_seconds": seconds[-1],
        }

    async def progress(self, meter: Meter) -> Numbers:
        """Let jobs report at a steady pace, and measure how old what their statuses say gets."""
        say(f"{self.running} jobs report every {REPORT_SECONDS:.0f} s")
        jobs = [job("job", number)["metadata"] for number in range(self.running)]
        pods = {pod["metadata"]["labels"][JOB_LABEL]: pod for pod in await self.load.list_all(PODS, None, CHILD_SELECTOR)}
        await self.load.run_pods([pods[each["name"]] for each in jobs])
        await self._rest(meter)
        ages = Ages()
        async with Arrivals(self.load, REWARDFLJOBS, selector="", each=ages.take).watching(), asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(self._report([(each["namespace"], each["name"]) for each in jobs]))
            await until("every status tells of a report", lambda: ages.known() >= len(jobs))
            await asyncio.sleep(WARM_SECONDS)
            ages.start()
            meter.start()
            before = meter.scrape()
            await asyncio.sleep(WATCHED_SECONDS)
            cores, oldest = meter.cores(), ages.oldest()
            after = meter.scrape()
            reporting.cancel()
        writes = after.total("rewardfl_status_writes_total") - before.total("rewardfl_status_writes_total")
        return {
            "status_age_max_seconds": oldest,
            "operator_cpu_cores": cores,
            "status_writes_a_second": writes / WATCHED_SECONDS,
        }

    async def _report(self, jobs: list[tuple[str, str]]) -> None:
        """Report for each in turn, so that reports come evenly."""
        began, count = monotonic(), 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                await asyncio.sleep(began + count * REPORT_SECONDS / len(jobs) - monotonic())
                step = 1 + count // len(jobs)
                tasks.create_task(self.load.report(*jobs[count % len(jobs)], step, TOTAL_STEPS))
                count += 1

    async def _rest(self, meter: Meter) -> None:
        """Wait until the operator has had nothing to write for a while."""
        writes, since = -1, monotonic()
        while monotonic() - since < REST_SECONDS:
            sample = meter.scrape()
            if sample.writes() != writes or not sample.is_at_rest():
                writes, since = sample.writes(), monotonic()
            await asyncio.sleep(0.5)

    async def _versions(self) -> dict[tuple[Kind, str], str]:
        """Return the version of each object that is a job's."""
        found: dict[tuple[Kind, str], str] = {}
        for kind in (REWARDFLJOBS, *CHILD_KINDS):
            selector = "" if kind is REWARDFLJOBS else CHILD_SELECTOR
            async for listed in self.load.list_pages(kind, None, selector, metadata_only=True):
                found |= {(kind, item["metadata"]["name"]): item["metadata"]["resourceVersion"] for item in listed["items"] or []}
        return found


class Ages:
    """How old what each job's status says of its progress has become, at most."""

    def __init__(self) -> None:
        self._reported: dict[str, datetime] = {}
        self._oldest = 0.0

    def take(self, body: dict[str, Any]) -> None:
        """Take in a RewardFLJob. What it said before was oldest just now."""
        name, text = body["metadata"]["name"], (body.get("status") or {}).get("lastProgressTime")
        if text is None:
            return
        if name in self._reported:
            self._oldest = max(self._oldest, self._age(name))
        self._reported[name] = datetime.fromisoformat(text)

    def known(self) -> int:
        """Return how many have told anything."""
        return len(self._reported)

    def start(self) -> None:
        """Forget how old any has been."""
        self._oldest = 0.0

    def oldest(self) -> float:
        """Return the age in seconds of the oldest since `start`, those that stand now included."""
        return max(self._oldest, *map(self._age, self._reported))

    def _age(self, name: str) -> float:
        return (datetime.now(UTC) - self._reported[name]).total_seconds()


async def measure(jobs: int, running: int) -> Numbers:
    """Run all phases."""
    numbers: Numbers = {"jobs": jobs, "running_jobs": running}
    async with Bench.start(jobs, running) as bench:
        meter = await asyncio.to_thread(bench.launch)
        try:
            numbers |= _said(await bench.burst(meter))
            numbers |= _said(await bench.idle(meter))
            peak = meter.peak_megabytes()
            meter, restarted = await bench.restart(meter)
            numbers |= _said(restarted)
            numbers |= _said(await bench.latency())
            numbers |= _said(await bench.progress(meter))
            numbers["rss_mb"] = max(peak, meter.peak_megabytes())
        finally:
            meter.operator.process.kill()
        numbers["errors"] = sum(operator.text().count("Traceback") for operator in bench.installation.operators)
    return numbers


def _said(numbers: Numbers) -> Numbers:
    """Show what a phase has found as soon as it has."""
    for name, value in numbers.items():
        say(f"  {name} {value:.3f}" if isinstance(value, float) else f"  {name} {value}")
    return numbers


def _changed(before: dict[Any, str], after: dict[Any, str]) -> int:
    return sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="make bench-operator", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--running", type=int, default=500)
    parser.add_argument("--print", action="store_true", help="write no file")
    options = parser.parse_args()
    measured = asyncio.run(measure(options.jobs, options.running))
    numbers = {key: round(value, 3) if isinstance(value, float) else value for key, value in measured.items()}
    numbers |= {"machine_cores": os.cpu_count(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    numbers["versions"] = {"rewardfl": __version__, "kubernetes": KUBERNETES.version}
    print(json.dumps(numbers, indent=2))
    constants = {
        "objects": options.jobs * (1 + len(CHILD_KINDS)),
        "idle_seconds": IDLE_SECONDS,
        "namespaces": len(NAMESPACES),
        "pace": 1 / LATENCY_SPACING_SECONDS,
        "report_seconds": REPORT_SECONDS,
    }
    if not options.print:
        (FOLDER / "operator.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        (FOLDER / "operator.md").write_text(page(numbers, constants), encoding="utf-8")


if __name__ == "__main__":
    main()
