"""Several replicas of the operator on a real API server: one works, another takes over, and no job is ever made twice."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rewardfl_operator.cluster import CONFIG_MAPS, Cluster, NotLeading
from rewardfl_operator.leader import Leadership, LeadershipLost
from rewardfl_operator.settings import LeaderElectionSettings
from tests.integration.api_proxy import ApiProxy, Call, Fault, api_proxy
from tests.integration.operator_harness import NAMESPACE, Installation, Operator, manifest, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("never_refused")]

TAKE_OVER_SECONDS = 30.0
HAND_OVER_SECONDS = 6.0
ANSWERS_AFTER_SECONDS = 3.0
"""So long the writes of an operator are held that is to be frozen while it waits for their answers."""

"""Less than half of a Lease's duration: it was given back."""

SHIPPED = {"enabled": True, "leaseName": "rewardfl-operator", "namespace": NAMESPACE}
BRIEF = {**SHIPPED, "leaseDurationSeconds": 5, "renewDeadlineSeconds": 4, "retrySeconds": 0.4}


@contextmanager
def replicas(installation: Installation, election: dict[str, Any], *kubeconfigs: str) -> Iterator[list[Operator]]:
    """Run one operator for each kubeconfig; the first leads. What is still alive at the end is killed."""
    running: list[Operator] = []
    try:
        for kubeconfig in kubeconfigs:
            running.append(installation.launch(kubeconfig, leaderElection=election))
            until("somebody leads", lambda: leads(running[0]))
        yield running
    finally:
        for operator in running:
            if operator.process.poll() is None:
                operator.kill()


def leads(operator: Operator) -> bool:
    return "leads now" in operator.text() and operator.health("/readyz") == 200


def made_jobs(installation: Installation) -> list[str]:
    """Names of all Kubernetes Jobs that belong to a RewardFLJob."""
    answer = installation.cluster.kubectl("get", "jobs", "-A", "-l", "rewardfl.io/job-name", "-o", "json")
    return sorted(item["metadata"]["labels"]["rewardfl.io/job-name"] for item in json.loads(answer)["items"])


def is_work(call: Call) -> bool:
    """Whether it changes something other than the Lease."""
    return call.is_write and "/leases" not in call.path


def waits_for_answers(proxy: ApiProxy) -> bool:
    """Whether the operator has sent its first writes, and the next ones come only after their answers.

    One that is frozen after it was asked whether it leads, and before its bytes are sent, sends them late: decision 0106.
    """
    sent = [call.at for call in proxy.seen if is_work(call)]
    return bool(sent) and time.monotonic() - sent[-1] > ANSWERS_AFTER_SECONDS / 3


def was_frozen_in_between(proxy: ApiProxy, operator: Operator) -> bool:
    """Freeze an operator that waits for answers; let it go on where that took so long that they may have come."""
    if not waits_for_answers(proxy):
        return False
    operator.process.send_signal(signal.SIGSTOP)
    sent = [call.at for call in proxy.seen if is_work(call)]
    if time.monotonic() - sent[-1] < ANSWERS_AFTER_SECONDS * 2 / 3:
        return True
    operator.process.send_signal(signal.SIGCONT)
    return False


def writes_to_jobs(proxy: ApiProxy, since: int) -> list[str]:
    """What an operator has asked the API server to change from its request number `since` on."""
    return [f"{call.method} {call.path}" for call in proxy.seen[since:] if call.is_write]


def test_one_of_two_replicas_works_and_the_other_takes_over(installation: Installation) -> None:
    with replicas(installation, SHIPPED, "", "") as (first, second):
        installation.create(manifest("led"))
        installation.wait_for_pods("led", 2)
        assert not leads(second)
        assert (second.health("/readyz"), second.health("/healthz")) == (200, 200)

        began = time.monotonic()
        assert first.stop() == 0
        until("the other one leads at once", lambda: leads(second))
        assert time.monotonic() - began < HAND_OVER_SECONDS, "the Lease was not given back"

        third = installation.launch(leaderElection=SHIPPED)
        try:
            began = time.monotonic()
            second.kill()
            installation.create(manifest("taken-over"))
            installation.wait_for_pods("taken-over", 2)
            assert time.monotonic() - began < TAKE_OVER_SECONDS
            assert leads(third)
        finally:
            third.kill()
    lease = installation.get("lease", "rewardfl-operator", NAMESPACE)["spec"]
    assert lease["leaseTransitions"] == 2
    assert made_jobs(installation) == ["led", "taken-over"]


async def test_of_replicas_that_try_at_the_same_moment_one_gets_the_lease(installation: Installation) -> None:
    settings = LeaderElectionSettings(lease_name="rewardfl-operator", namespace=NAMESPACE, retry_seconds=0.4)
    installation.cluster.kubectl("delete", "lease", "rewardfl-operator", "--namespace", NAMESPACE, "--ignore-not-found")
    clusters = [await Cluster.connect(installation.kubeconfig()) for _ in range(4)]
    candidates = [Leadership(cluster, settings, f"candidate-{number}") for number, cluster in enumerate(clusters)]
    waiting = [asyncio.create_task(candidate.acquire()) for candidate in candidates]
    for _ in candidates:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        (first,) = done
        held = [candidate for candidate in candidates if candidate.is_held()]
        assert [candidate.identity for candidate in held] == [candidates[waiting.index(first)].identity]
        await held[0].release()
        waiting[waiting.index(first)] = asyncio.create_task(asyncio.Event().wait())
    for task in waiting:
        task.cancel()
    for cluster in clusters:
        await cluster.close()


async def test_a_leader_that_has_not_renewed_its_lease_in_time_writes_nothing(installation: Installation) -> None:
    times = {"lease_duration_seconds": 1, "renew_deadline_seconds": 0.5, "retry_seconds": 0.1}
    settings = LeaderElectionSettings(lease_name="rewardfl-operator", namespace=NAMESPACE, **times)
    election, cluster = [await Cluster.connect(installation.kubeconfig()) for _ in range(2)]
    leader = Leadership(election, settings, "late")
    cluster.may_write = leader.is_held
    note = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "in-time", "namespace": "default"}}
    await leader.acquire()
    await cluster.create(note)

    await asyncio.sleep(settings.renew_deadline_seconds)
    with pytest.raises(NotLeading):
        await cluster.create({**note, "metadata": {**note["metadata"], "name": "too-late"}})
    with pytest.raises(LeadershipLost, match="was not renewed"):
        await leader.hold()

    assert installation.find("configmap", "in-time") is not None
    assert installation.find("configmap", "too-late") is None
    for connection in (election, cluster):
        await connection.close()


async def test_a_write_that_waited_for_its_connection_is_not_sent_when_the_lease_was_lost_meanwhile(
    installation: Installation,
) -> None:
    cluster = await Cluster.connect(installation.kubeconfig())
    answers = iter([True, False])
    cluster.may_write = lambda: next(answers)
    metadata = {"name": "lost-meanwhile", "namespace": "default"}

    with pytest.raises(NotLeading):
        await cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})

    assert installation.find("configmap", "lost-meanwhile") is None
    assert await cluster.get(CONFIG_MAPS, "default", "lost-meanwhile") is None, "the connection can be used again"
    await cluster.close()


def test_a_leader_that_was_frozen_ends_without_a_write(installation: Installation, tmp_path: Path) -> None:
    with api_proxy(installation.kubeconfig()) as proxy:
        through_proxy = proxy.kubeconfig(installation.kubeconfig(), tmp_path / "proxy.kubeconfig")
        with replicas(installation, BRIEF, through_proxy, "") as (frozen, heir):
            with proxy.with_rule(lambda call: Fault(delay_seconds=ANSWERS_AFTER_SECONDS) if is_work(call) else None):
                installation.create(manifest("in-between"))
                until("it is frozen while it waits for answers", lambda: was_frozen_in_between(proxy, frozen))
            until("the other one leads", lambda: leads(heir))
            installation.wait_for_pods("in-between", 2)
            before = len(proxy.seen)  # what was on its way when it froze has arrived by now

            frozen.process.send_signal(signal.SIGCONT)

            assert frozen.process.wait(timeout=20) == 1
            assert "was not renewed for 4 s" in frozen.text()
            assert writes_to_jobs(proxy, before) == []
            assert heir.process.poll() is None
    assert made_jobs(installation).count("in-between") == 1


def test_an_api_server_that_is_away_for_longer_than_a_lease_stops_nobody_for_good(
    installation: Installation, tmp_path: Path
) -> None:
    with api_proxy(installation.kubeconfig()) as proxy:
        through_proxy = proxy.kubeconfig(installation.kubeconfig(), tmp_path / "proxy.kubeconfig")
        with replicas(installation, BRIEF, through_proxy, through_proxy) as (leader, standby):
            with proxy.with_rule(lambda _: Fault(refuse=True)):
                assert leader.process.wait(timeout=20) == 1, "without the Lease it must not go on"
                restarted = installation.start_process(through_proxy, leaderElection=BRIEF)
                time.sleep(BRIEF["leaseDurationSeconds"])
                assert [standby.process.poll(), restarted.process.poll()] == [None, None]
                assert standby.health("/healthz") == restarted.health("/healthz") == 200
            try:
                installation.create(manifest("after-the-outage"))
                installation.wait_for_pods("after-the-outage", 2)
                assert leads(standby) != leads(restarted)
            finally:
                restarted.kill()
    assert made_jobs(installation).count("after-the-outage") == 1
