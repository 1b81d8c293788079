"""The operator behind a proxy that refuses, breaks, cuts and withholds what it asks the real API server (faults 3 and 4)."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from rewardfl_operator.informer import FIRST_PAUSE_SECONDS
from rewardfl_operator.main import kopf_settings
from rewardfl_operator.settings import OperatorSettings
from tests.integration.api_proxy import ApiProxy, Call, Fault, api_proxy
from tests.integration.operator_harness import Installation, Kubelet, Operator, manifest, until

pytestmark = pytest.mark.slow

CATCH_UP_SECONDS = 75.0
NEVER_SECONDS = 3600
SILENCE_SECONDS = 3.0
OUTAGE_SECONDS = 5.0
CHILDREN = "jobs,configmaps,services,serviceaccounts,roles,rolebindings,networkpolicies"
PLACES = ("configmaps", "jobs", "events", "rewardfljobs")
"""Where each job meets its fault, once: at its first object, at its Kubernetes Job, at its first event and at its status."""

RETRY_AFTER = 2
UNDER_WAY_SECONDS = 1.0
"""The objects of a job are asked for at the same time: what was sent beside the request that was refused is under way."""

FAULTS = {
    "conflict": Fault(status=409),
    "too-many": Fault(status=429, retry_after=RETRY_AFTER),
    "internal": Fault(status=500),
    "unavailable": Fault(status=503),
    "refused": Fault(refuse=True),
    "lost": Fault(lose_answer=True),
    "cut": Fault(cut_after=20),
    "truncated": Fault(truncate_after=20),
    "slow": Fault(delay_seconds=0.2),
    "trickled": Fault(trickle_bytes=256),
}
MOST_REQUESTS = 100
"""Of one job, with all its faults: it needs about 20 without any."""


@pytest.fixture(scope="module")
def proxy(installation: Installation) -> Iterator[ApiProxy]:
    with api_proxy(installation.kubeconfig()) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def operator(installation: Installation, proxy: ApiProxy) -> Iterator[Operator]:
    """An operator that learns of everything from its watches alone."""
    kubeconfig = proxy.kubeconfig(installation.kubeconfig(), installation.folder / "proxy.kubeconfig")
    with installation.operator(kubeconfig, watchSilenceSeconds=SILENCE_SECONDS, resyncSeconds=NEVER_SECONDS) as operator:
        yield operator


def listed(installation: Installation, kinds: str, namespace: str) -> list[dict[str, Any]]:
    answer = installation.cluster.kubectl("get", kinds, "-n", namespace, "-l", "rewardfl.io/job-name", "-o", "json")
    return list(json.loads(answer)["items"])


def listed_everywhere(installation: Installation) -> list[dict[str, Any]]:
    """The Kubernetes Jobs of all jobs."""
    return list(json.loads(installation.cluster.kubectl("get", "jobs", "-A", "-o", "json"))["items"])


def place_of(call: Call) -> tuple[str, str]:
    """The namespace and the plural of a request; empty for requests of the whole cluster."""
    steps = call.path.partition("/namespaces/")[2].split("/")
    return (steps[0], steps[1]) if len(steps) > 1 else ("", "")


def is_brought_about(installation: Installation, namespace: str) -> bool:
    """Whether the job of that namespace has all its objects, its pods, and a status that says so."""
    kinds = Counter(item["kind"] for item in listed(installation, f"{CHILDREN},pods", namespace))
    (job,) = json.loads(installation.cluster.kubectl("get", "rewardfljobs", "-n", namespace, "-o", "json"))["items"]
    running = [item for item in job.get("status", {}).get("conditions", []) if item["type"] == "Running"]
    once = ("Job", "Service", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy")
    wanted = {"ConfigMap": 2, "Pod": 2, **dict.fromkeys(once, 1)}
    return kinds == wanted and [item["reason"] for item in running] == ["Unschedulable"]


def test_every_answer_that_is_refused_lost_or_broken_is_outlived(
    installation: Installation, proxy: ApiProxy, operator: Operator
) -> None:
    met: set[tuple[str, str]] = set()

    def rule(call: Call) -> Fault | None:
        namespace, kind = place_of(call)
        if not call.is_write or namespace not in FAULTS or kind not in PLACES or (namespace, kind) in met:
            return None
        met.add((namespace, kind))
        return FAULTS[namespace]

    before = len(proxy.seen)
    with proxy.with_rule(rule):
        for namespace in FAULTS:
            installation.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            job = manifest("job")
            installation.create({**job, "metadata": {**job["metadata"], "namespace": namespace}})
        for namespace in FAULTS:
            until(f"the job of {namespace}", lambda of=namespace: is_brought_about(installation, of))  # type: ignore[misc]

    assert met == {(namespace, place) for namespace in FAULTS for place in PLACES}
    requests = Counter(place_of(call)[0] for call in proxy.seen[before:])
    assert all(requests[namespace] < MOST_REQUESTS for namespace in FAULTS), requests
    assert operator.process.poll() is None
    assert operator.health("/healthz") == 200


def test_what_asks_for_time_gets_it(proxy: ApiProxy, operator: Operator) -> None:
    calls = [call for call in proxy.seen if place_of(call)[0] == "too-many" and call.is_write]
    refused = [next(call for call in calls if place_of(call)[1] == place) for place in PLACES]
    for first in refused:
        waits = [call.at - first.at for call in calls if call.at > first.at + UNDER_WAY_SECONDS]
        assert min(waits) >= RETRY_AFTER, place_of(first)


def test_what_runs_before_the_chart_is_uninstalled_outlives_the_same_and_says_what_it_could_not_do(
    installation: Installation, proxy: ApiProxy, operator: Operator
) -> None:
    kubeconfig = proxy.kubeconfig(installation.kubeconfig(), installation.folder / "release.kubeconfig")
    met: set[str] = set()

    def rule(call: Call) -> Fault | None:
        namespace, kind = place_of(call)
        if call.path.endswith("/pods") and not call.is_watch and "pods" not in met:
            met.add("pods")
            return Fault(status=503)
        if (call.method, kind) != ("PATCH", "jobs") or (namespace in met and namespace != "refused"):
            return None
        met.add(namespace)
        return Fault(status=403) if namespace == "refused" else FAULTS[namespace]

    with proxy.with_rule(rule):
        said = installation.release("--patience-seconds", "20", kubeconfig=kubeconfig, exit_code=1)

    assert met == {"pods", *FAULTS}
    assert said.splitlines()[-1].startswith("not released: refused/job: 403: ")
    limits = {item["metadata"]["namespace"]: item["spec"]["backoffLimit"] for item in listed_everywhere(installation)}
    assert {namespace for namespace, limit in limits.items() if limit != 0} == {"refused"}


def test_watches_that_fall_silent_are_replaced_and_nothing_is_missed(
    installation: Installation, proxy: ApiProxy, operator: Operator
) -> None:
    installation.create(manifest("stalled"))
    pods, kubelet = installation.wait_for_pods("stalled", 2), Kubelet(installation, "stalled")
    for pod in pods:
        kubelet.stage(pod)
    until("staging", lambda: installation.phase("stalled") == "Staging")

    proxy.freeze_open_watches(lambda _: True)
    for pod in pods:
        kubelet.train(pod)
    kubelet.report(phase="Training", step=7, total_steps=40)
    installation.create(manifest("created-in-silence", nodes=1))
    assert installation.phase("stalled") == "Staging"

    patience = 5 * SILENCE_SECONDS
    until("pods and progress are seen", lambda: installation.status("stalled").get("progress") == "7/40", patience)
    until("the new job is seen", lambda: installation.phase("created-in-silence") == "Pending", patience)
    installation.cluster.kubectl("delete", "rewardfljob", "stalled", "created-in-silence", "--wait=false")


def test_the_shipped_times_catch_up_within_75_seconds() -> None:
    shipped = OperatorSettings()
    kopfs = kopf_settings(shipped).watching
    assert kopfs.inactivity_timeout + kopfs.reconnect_backoff < CATCH_UP_SECONDS
    assert shipped.watch_silence_seconds + 1.5 * FIRST_PAUSE_SECONDS < CATCH_UP_SECONDS
    assert shipped.watch_silence_seconds > 60, "the API server's bookmarks come once a minute: healthy watches would be given up"


def test_dead_watches_are_noticed_and_an_api_server_that_is_down_is_no_reason_to_start_again(
    installation: Installation, proxy: ApiProxy, operator: Operator
) -> None:
    operator.kill()  # or its watches would be meddled with as well
    kubeconfig = proxy.kubeconfig(installation.kubeconfig(), installation.folder / "liveness.kubeconfig")
    brief = {"watchSilenceSeconds": 1.5, "resyncSeconds": 0.5}
    with installation.operator(kubeconfig, **brief) as living:
        installation.create(manifest("before"))
        until("its status", lambda: installation.phase("before") == "Pending")
        assert living.health("/healthz") == 200

        with proxy.with_rule(lambda call: Fault(refuse=True) if call.number % 2 else Fault(status=503)):
            end = time.monotonic() + OUTAGE_SECONDS
            while time.monotonic() < end:
                assert living.health("/healthz") == 200, "the API server is down: a restart helps nobody"
                time.sleep(0.2)
        installation.create(manifest("after"))
        until("it goes on by itself", lambda: installation.phase("after") == "Pending")
        assert living.process.poll() is None

        with proxy.with_rule(lambda call: Fault(stall=True) if call.is_kopf else None):
            proxy.freeze_open_watches(lambda call: call.is_kopf)
            installation.create(manifest("unseen"))
            until("the comparison finds what the watch has missed", lambda: installation.phase("unseen") == "Pending")
            until("kopf's dead watch is noticed", lambda: living.health("/healthz") == 503)
        installation.cluster.kubectl("delete", "rewardfljob", "before", "after", "unseen", "--wait=false")
        until("it is well when the watch is", lambda: living.health("/healthz") == 200)

        with proxy.with_rule(lambda call: Fault(stall=True) if "/pods" in call.path else None):
            proxy.freeze_open_watches(lambda call: "/pods" in call.path)
            until("a dead watch of pods is noticed", lambda: living.health("/healthz") == 503)
