"""What is shown of Kueue's Workloads, and what is asked when."""

from typing import Any, cast

import pytest

from rewardfl_operator import kueue
from rewardfl_operator.cluster import ApiError, Cluster, Kind
from rewardfl_operator.kueue import Waiting, Workloads
from rewardfl_operator.observed import JobSeen
from tests.unit.operator_objects import JOB_UID, QUEUE_LABELS, condition, kubernetes_job

Raw = dict[str, Any]
NO_QUOTA = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 2 more needed"
PREEMPTED = "Preempted to accommodate a workload (UID: 1, JobUID: 2) due to prioritization in the ClusterQueue"


def workload(*conditions: Raw, **spec: Any) -> Raw:
    return {"spec": spec, "status": {"conditions": list(conditions)}}


def pending(message: str = NO_QUOTA) -> Raw:
    return condition("QuotaReserved", "False", "Pending", message)


def job(queued: bool = True) -> JobSeen:
    live = kubernetes_job(suspend=True)
    return JobSeen.parse({**live, "metadata": {**live["metadata"], "labels": QUEUE_LABELS if queued else {}}})


class Server:
    """An API server that serves Workloads in some versions, and remembers what it was asked for."""

    def __init__(self, *found: Raw, versions: tuple[str, ...] = ("v1beta2",), refusal: int = 404) -> None:
        self.found, self.versions, self.refusal = list(found), versions, refusal
        self.asked: list[str] = []

    async def list_all(self, kind: Kind, namespace: str, selector: str) -> list[Raw]:
        assert (kind.path(namespace), selector) == (
            f"/apis/kueue.x-k8s.io/{kind.version}/namespaces/team/workloads",
            f"kueue.x-k8s.io/job-uid={JOB_UID}",
        )
        self.asked.append(kind.version)
        if kind.version not in self.versions:
            raise ApiError(self.refusal, "the server could not find the requested resource")
        return self.found

    def workloads(self) -> Workloads:
        return Workloads(cast(Cluster, self))


def test_why_a_job_waits_is_said_in_kueues_words() -> None:
    assert kueue.parse(workload(pending())) == f"{NO_QUOTA}."
    assert kueue.parse(workload(condition("Evicted", reason="Preempted", message=PREEMPTED), pending())) == (
        f"{PREEMPTED}. {NO_QUOTA}."
    )
    assert kueue.parse(workload(condition("QuotaReserved", message="Quota reserved"))) == ""
    assert kueue.parse(workload(pending(), active=False)).endswith("its Workload was deactivated (spec.active).")
    assert kueue.parse({}) == ""


async def test_a_version_that_is_not_served_is_asked_for_once() -> None:
    server = Server(workload(pending()), versions=("v1beta1",))
    workloads = server.workloads()

    for _ in range(2):
        assert await workloads.of(job(), "team") == Waiting(f"{NO_QUOTA}.", kueue.LOOK_AGAIN_SECONDS)
    assert server.asked == ["v1beta2", "v1beta1", "v1beta1"]


@pytest.mark.parametrize("refusal", [404, 403])
async def test_where_kueue_is_not_or_may_not_be_read_it_is_not_asked_for_every_job(refusal: int) -> None:
    server = Server(versions=(), refusal=refusal)
    workloads = server.workloads()
    first = await workloads.of(job(), "team")
    asked = len(server.asked)

    assert first == await workloads.of(job(), "team") == Waiting("", kueue.ABSENT_SECONDS)
    assert await workloads.of(job(queued=False), "team") is None
    assert len(server.asked) == asked


async def test_what_the_api_server_cannot_answer_is_asked_again() -> None:
    with pytest.raises(ApiError, match="503"):
        await Server(versions=(), refusal=503).workloads().of(job(), "team")


async def test_until_kueue_says_something_it_is_asked_soon_and_then_less_often() -> None:
    server = Server()
    workloads = server.workloads()

    waited = [answer.look_again for _ in range(7) if (answer := await workloads.of(job(), "team")) is not None]

    assert waited == [1, 2, 4, 8, 16, 30, 30]
    assert await workloads.of(job(queued=False), "team") is None, "nothing of Kueue's: somebody else has suspended it"
    server.found = [workload(pending())]
    await workloads.of(job(), "team")
    server.found = []
    assert await workloads.of(job(), "team") == Waiting("", 1)
