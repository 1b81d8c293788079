"""An operator writes what is missing and nothing else, and being killed after any of its writes changes nothing of that."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, Self

import pytest
from aiohttp import ClientResponse

from rewardfl_api.job import RewardFLJob
from rewardfl_api.trainer_config import CONFIG_KEY
from rewardfl_operator import resources
from rewardfl_operator.cluster import READS, Cluster, Kind
from rewardfl_operator.controller import Controller
from rewardfl_operator.settings import OperatorSettings
from rewardfl_operator.supporting import seal
from tests.integration.operator_harness import Installation, Kubelet, manifest, until

pytestmark = pytest.mark.slow

MORE_WRITES_THAN_A_JOB_NEEDS = 40
SETTLES_WITHIN_SECONDS = 60
ENDS_WITHIN_SECONDS = 15
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
    deadline = monotonic() + SETTLES_WITHIN_SECONDS
    try:
        while not running.done() and not await asyncio.to_thread(is_settled, installation, job):
            assert monotonic() < deadline, await asyncio.to_thread(why_it_is_not_settled, installation, job, cluster.writes)
            await asyncio.wait([running], timeout=0.1)
    finally:
        await end(running)
        await cluster.close()
    return cluster.writes


@asynccontextmanager
async def operating(installation: Installation) -> AsyncIterator[tuple[MortalCluster, Controller]]:
    """Run an operator within the block. The watch of RewardFLJobs is kopf's; here its resync sees them."""
    cluster = await MortalCluster.of(installation)
    controller = Controller(cluster, FAST)
    running = asyncio.create_task(controller.run())
    try:
        yield cluster, controller
    finally:
        await end(running)
        await cluster.close()


async def end(running: asyncio.Task[None]) -> None:
    """End the operator; one that does not end is a failure that shows where each of its tasks stands."""
    running.cancel()
    await asyncio.wait([running], timeout=ENDS_WITHIN_SECONDS)
    if not running.done():
        stacks = io.StringIO()
        for task in asyncio.all_tasks():
            task.print_stack(file=stacks)
        pytest.fail(f"the operator did not end within {ENDS_WITHIN_SECONDS} s of being cancelled:\n{stacks.getvalue()}")
    with suppress(asyncio.CancelledError, BaseExceptionGroup):
        running.result()


def why_it_is_not_settled(installation: Installation, job: str, writes: list[str]) -> str:
    found = {
        "status": installation.status(job),
        "pods": [(pod["metadata"]["name"], pod["status"]) for pod in installation.pods(job)],
        "children": [f"{item['kind']}/{item['metadata']['name']}" for item in installation.children(job)],
        "writes": writes,
    }
    return f"{job} was not Pending with two pods within {SETTLES_WITHIN_SECONDS} s:\n{json.dumps(found, indent=1)}"


async def eventually(what: str, check: Callable[[], Any]) -> None:
    await asyncio.to_thread(until, what, check)


def turns(controller: Controller) -> float:
    return controller.metrics.registry.get_sample_value("rewardfl_reconcile_duration_seconds_count") or 0.0


def requests(controller: Controller, verb: str, kind: str = "") -> float:
    """How many requests it has made."""
    samples = (sample for family in controller.metrics.api_requests.collect() for sample in family.samples)
    counts = (sample for sample in samples if sample.name.endswith("_total"))
    return sum(each.value for each in counts if each.labels["verb"] == verb and kind in each.labels["kind"])


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


async def test_a_job_costs_one_request_for_each_of_its_objects(installation: Installation) -> None:
    installation.create(manifest("frugal"))

    requests = await operate(installation, "frugal", None)

    made = sorted(request for request in requests if "/events" not in request and "/status" not in request)
    assert made == [
        "create /api/v1/namespaces/default/configmaps",
        "create /api/v1/namespaces/default/configmaps",
        "create /api/v1/namespaces/default/serviceaccounts",
        "create /api/v1/namespaces/default/services",
        "create /apis/batch/v1/namespaces/default/jobs",
        "create /apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
        "create /apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
        "create /apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
    ]


async def test_an_operator_that_finds_everything_done_writes_nothing(installation: Installation) -> None:
    installation.create(manifest("quiet"))
    await operate(installation, "quiet", None)

    async with operating(installation) as (cluster, controller):
        await eventually(
            "each job had its turn", lambda: turns(controller) >= len(controller.store) and not controller.queue_depth()
        )
        await eventually("a resync", lambda: requests(controller, "list", "rewardfljobs") >= 2)

    assert cluster.writes == []
    assert requests(controller, "get") == 0


async def test_objects_that_somebody_has_removed_come_back_with_the_next_operator(installation: Installation) -> None:
    installation.create(manifest("robbed"))
    await operate(installation, "robbed", None)
    installation.cluster.kubectl("delete", "configmap/robbed-config", "service/robbed", "job/robbed", "--wait=true")
    until("the pods are gone", lambda: not installation.pods("robbed"))

    async with operating(installation):
        await asyncio.to_thread(installation.wait_for_pods, "robbed", 2)

    assert installation.find("configmap", "robbed-config") is not None
    assert installation.find("service", "robbed") is not None


async def test_what_somebody_changes_while_the_operator_runs_is_mended_and_what_they_add_is_left(
    installation: Installation,
) -> None:
    installation.create(manifest("edited"))
    async with operating(installation) as (cluster, _):
        await asyncio.to_thread(installation.wait_for_pods, "edited", 2)
        config = installation.get("configmap", "edited-config")["data"]
        cluster.writes.clear()

        installation.patch("configmap", "edited-config", {"data": {CONFIG_KEY: "broken", "theirs": "kept"}})
        installation.cluster.kubectl("delete", "networkpolicy", "edited", "--wait=true")
        installation.patch("role", "edited-trainer", {"metadata": {"labels": {"rewardfl.io/job-name": None}}})

        def is_mended() -> bool:
            data = installation.get("configmap", "edited-config")["data"]
            role = installation.get("role", "edited-trainer")
            return data == {**config, "theirs": "kept"} and "rewardfl.io/job-name" in role["metadata"]["labels"]

        await eventually("both are mended", is_mended)
        await eventually("the policy is back", lambda: installation.find("networkpolicy", "edited"))
    assert len([write for write in cluster.writes if "edited-config" in write]) == 2  # the fields taken over, then applied


async def test_what_somebody_changed_while_no_operator_ran_is_mended(installation: Installation) -> None:
    installation.create(manifest("unwatched"))
    await operate(installation, "unwatched", None)
    rules = installation.get("role", "unwatched-trainer")["rules"]
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    installation.patch("role", "unwatched-trainer", {"rules": everything})

    async with operating(installation):
        await eventually("the role is mended", lambda: installation.get("role", "unwatched-trainer")["rules"] == rules)


async def test_a_port_that_is_no_longer_wanted_goes_from_a_service_that_was_created_with_it(installation: Installation) -> None:
    """What is created is not what is applied: without care an apply would leave it there."""
    job = RewardFLJob.parse(installation.create(manifest("upgraded")))
    service = next(item for item in resources.supporting_objects(job, FAST) if item["kind"] == "Service")
    port = {"name": "old", "port": 1234, "protocol": "TCP", "targetPort": 1234}
    earlier = {**service, "spec": {**service["spec"], "ports": [*service["spec"]["ports"], port]}}
    seal(earlier)
    cluster = await MortalCluster.of(installation)
    await cluster.create(earlier)
    await cluster.close()

    await operate(installation, "upgraded", None)

    assert [port["name"] for port in installation.get("service", "upgraded")["spec"]["ports"]] == ["rendezvous"]


async def test_an_object_of_somebody_else_is_not_touched(installation: Installation) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "taken-trainer"}}
    before = installation.create(account)["metadata"]["resourceVersion"]
    installation.create(manifest("taken"))

    async with operating(installation):
        await eventually("the job is refused", lambda: installation.condition("taken", "Accepted").get("status") == "False")

    assert "ServiceAccount taken-trainer exists already" in installation.condition("taken", "Accepted")["message"]
    assert installation.get("serviceaccount", "taken-trainer")["metadata"]["resourceVersion"] == before
    assert installation.find("job", "taken") is None


async def test_reports_that_come_fast_cost_a_status_write_a_second_and_the_last_one_counts(installation: Installation) -> None:
    installation.create(manifest("chatty", nodes=1))
    async with operating(installation) as (cluster, _):
        (pod,) = await asyncio.to_thread(installation.wait_for_pods, "chatty", 1)
        kubelet = Kubelet(installation, "chatty")
        kubelet.stage(pod)
        kubelet.train(pod)
        await eventually("it runs", lambda: installation.phase("chatty") == "Preparing")
        cluster.writes.clear()
        began = monotonic()

        for step in range(1, 21):
            await asyncio.to_thread(kubelet.report, phase="Training", step=step, totalSteps=40)
        await eventually("the last is told", lambda: installation.status("chatty").get("step") == 20)

    writes = [write for write in cluster.writes if "rewardfljobs/chatty/status" in write]
    assert len(writes) <= monotonic() - began + 1
