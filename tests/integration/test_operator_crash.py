"""An operator that is killed after any of its writes leaves nothing that the next one does not bring to the same end."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import ClientResponse

from rewardfl_operator.cluster import READS, Cluster, Kind
from rewardfl_operator.controller import Controller
from rewardfl_operator.settings import OperatorSettings
from tests.integration.operator_harness import Installation, manifest, until

pytestmark = pytest.mark.slow

MORE_WRITES_THAN_A_JOB_NEEDS = 40
FAST = OperatorSettings(resync_seconds=0.3)


class Killed(BaseException):
    """Ends the operator at once: nothing in it catches a BaseException."""


class MortalCluster(Cluster):
    """A real connection; the operator dies as soon as its `last_write`-th write has been carried out.

    Writes go one after the other: otherwise another one may be on its way when it dies.
    """

    last_write: int | None
    writes: list[str]
    one_by_one: asyncio.Lock

    @classmethod
    async def of(cls, installation: Installation, last_write: int | None = None) -> Self:
        cluster = await cls.connect(installation.kubeconfig())
        cluster.last_write, cluster.writes, cluster.one_by_one = last_write, [], asyncio.Lock()
        return cluster

    async def _request(self, verb: str, kind: Kind, path: str, body: Any = None, **options: Any) -> ClientResponse:
        if verb in READS:
            return await super()._request(verb, kind, path, body, **options)
        what = f"{verb} {path}"
        async with self.one_by_one:
            if len(self.writes) == self.last_write:
                raise Killed(what)
            answer = await super()._request(verb, kind, path, body, **options)
            self.writes.append(what)
            if len(self.writes) == self.last_write:
                await answer.read()
                raise Killed(what)
            return answer


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder: Path = tmp_path_factory.mktemp("installation")
    with Installation.start(folder) as installation:
        yield installation


async def operate(installation: Installation, job: str, last_write: int | None) -> list[str]:
    """Run an operator until the job's status says Pending, or until it dies; return what it has written."""
    cluster = await MortalCluster.of(installation, last_write)
    controller = Controller(cluster, FAST)
    running = asyncio.create_task(controller.run())
    try:
        while not running.done() and not await asyncio.to_thread(is_settled, installation, job):
            await asyncio.wait([running], timeout=0.1)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError, BaseExceptionGroup):
            await running
        await cluster.close()
    return cluster.writes


def is_settled(installation: Installation, job: str) -> bool:
    return installation.condition(job, "Running").get("reason") == "Unschedulable" and len(installation.pods(job)) == 2


def outcome(installation: Installation, job: str) -> dict[str, Any]:
    """What stands of a job, without what differs between any two: uids, times and its own name."""
    objects: dict[str, Any] = {}
    for item in installation.children(job):
        if item["kind"] == "Pod":
            continue
        owners = [owner["name"] for owner in item["metadata"]["ownerReferences"]]
        content = {key: item[key] for key in ("data", "rules", "roleRef", "subjects") if key in item}
        objects[f"{item['kind']}/{item['metadata']['name']}"] = [owners, content, item["metadata"]["labels"]]
    pods = sorted(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in installation.pods(job))
    events = sorted(event["reason"] for event in installation.events(job) if event["reason"] != "Unschedulable")
    found = {"objects": objects, "pods": pods, "phase": installation.phase(job), "events": events}
    text = json.dumps(found, sort_keys=True).replace(job, "JOB")
    return dict(json.loads(text))


async def test_a_job_is_brought_about_the_same_whichever_write_was_the_last(installation: Installation) -> None:
    installation.create(manifest("unbroken"))
    writes = await operate(installation, "unbroken", None)
    expected = outcome(installation, "unbroken")
    assert len(expected["objects"]) == 8
    assert expected["pods"] == ["0", "1"]

    for last_write in range(1, len(writes) + 1):
        job = f"broken-{last_write}"
        installation.create(manifest(job))
        before = await operate(installation, job, last_write)
        assert len(before) == last_write, f"the operator was to die after {last_write} writes"

        await operate(installation, job, None)

        assert outcome(installation, job) == expected, f"killed after {before[-1]}"
        installation.cluster.kubectl("delete", "rewardfljob", job, "--wait=false")
    assert len(writes) < MORE_WRITES_THAN_A_JOB_NEEDS


async def test_an_operator_that_finds_everything_done_writes_nothing(installation: Installation) -> None:
    installation.create(manifest("quiet"))
    await operate(installation, "quiet", None)
    version = installation.get("rewardfljob", "quiet")["metadata"]["resourceVersion"]
    children = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in installation.children("quiet")}

    cluster = await MortalCluster.of(installation)
    controller = Controller(cluster, FAST)
    running = asyncio.create_task(controller.run())
    await asyncio.sleep(4)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await cluster.close()

    assert not [write for write in cluster.writes if "rewardfljobs" in write or "jobs/quiet" in write]
    assert installation.get("rewardfljob", "quiet")["metadata"]["resourceVersion"] == version
    after = {item["metadata"]["name"]: item["metadata"]["resourceVersion"] for item in installation.children("quiet")}
    assert {name: after[name] for name in children if "quiet-" not in name} == {
        name: found for name, found in children.items() if "quiet-" not in name
    }


async def test_objects_that_somebody_has_removed_come_back_with_the_next_operator(installation: Installation) -> None:
    installation.create(manifest("robbed"))
    await operate(installation, "robbed", None)
    installation.cluster.kubectl("delete", "configmap/robbed-config", "service/robbed", "job/robbed", "--wait=true")
    until("the pods are gone", lambda: not installation.pods("robbed"))

    cluster = await MortalCluster.of(installation)
    controller = Controller(cluster, FAST)
    running = asyncio.create_task(controller.run())
    await asyncio.to_thread(installation.wait_for_pods, "robbed", 2)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await cluster.close()

    assert installation.find("configmap", "robbed-config") is not None
    assert installation.find("service", "robbed") is not None
