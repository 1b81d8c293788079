"""The chart as it runs on a real node: `helm test`, metrics through the Service, two replicas, `helm uninstall`."""

import json
from typing import Any

import pytest
import yaml

from examples.demo import read_manifest
from tests.cluster import ClusterError
from tests.cluster.report import wait_until
from tests.cluster.stack import CHART, OPERATOR_NAMESPACE, RELEASE, Stack

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SERVICE = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/services/rewardfl-operator:8080/proxy"


def test_helm_test_finds_the_operator_ready_and_leaves_nothing_behind(stack: Stack) -> None:
    printed = stack.cluster.helm("test", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--timeout", "120s")

    assert "Phase:          Succeeded" in printed
    of_the_test = "app.kubernetes.io/component=test"
    kinds = "pods,serviceaccounts,roles,rolebindings"
    assert stack.cluster.kubectl("get", kinds, "-n", OPERATOR_NAMESPACE, "-l", of_the_test, "-o", "name") == ""


def test_prometheus_reads_the_metrics_through_the_service(stack: Stack) -> None:
    text = stack.cluster.kubectl("get", "--raw", f"{SERVICE}/metrics")

    assert 'rewardfl_build_info{version="' in text
    assert "rewardfl_leader 1.0" in text
    with pytest.raises(ClusterError):
        stack.cluster.kubectl("get", "--raw", f"{SERVICE}/anything-else")


def holder(stack: Stack) -> str:
    """The operator's pod that holds the Lease; empty when none does."""
    lease = ["get", "lease", "rewardfl-operator", "-n", OPERATOR_NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"]
    identity = stack.cluster.kubectl(*lease)
    return next((pod for pod in pods(stack) if identity.startswith(pod)), "")


def pods(stack: Stack) -> list[str]:
    """The operator's pods."""
    only = ["-l", "app.kubernetes.io/component=operator", "-o", "jsonpath={.items[*].metadata.name}"]
    return stack.cluster.kubectl("get", "pods", "-n", OPERATOR_NAMESPACE, *only).split()


def upgrade(stack: Stack, replicas: int) -> None:
    """Change the number of replicas, and wait until all are ready."""
    own = ["--reuse-values", "--set", f"replicas={replicas}", "--set", f"podDisruptionBudget.enabled={str(replicas > 1).lower()}"]
    stack.cluster.helm("upgrade", RELEASE, str(CHART), "-n", OPERATOR_NAMESPACE, *own, "--wait", "--timeout", "120s")


def test_of_two_replicas_one_leads_and_the_other_takes_over_and_one_is_enough_again(stack: Stack) -> None:
    upgrade(stack, replicas=2)
    try:
        wait_until(lambda: len(pods(stack)) == 2 and holder(stack) != "", "one of two leads", timeout_seconds=60)
        first = holder(stack)
        allowed = ["get", "pdb", "-n", OPERATOR_NAMESPACE, "-o", "jsonpath={.items[*].status.disruptionsAllowed}"]
        wait_until(lambda: stack.cluster.kubectl(*allowed) == "1", "the budget counts both", timeout_seconds=60)

        stack.cluster.kubectl("delete", "pod", first, "-n", OPERATOR_NAMESPACE, "--wait=false")

        wait_until(lambda: holder(stack) not in ("", first), "another leads", timeout_seconds=30)
    finally:
        upgrade(stack, replicas=1)
    wait_until(lambda: len(pods(stack)) == 1 and holder(stack) != "", "the only one leads", timeout_seconds=60)


BUSY = {
    "spec": {"terminationGracePeriodSeconds": 1, "initContainers": [{"name": "stage", "command": ["sleep"], "args": ["600"]}]}
}


def gang(stack: Stack, namespace: str) -> dict[str, Any]:
    """A job of two nodes that stages for ten minutes."""
    job = read_manifest(stack.storage_spec())
    spec = {**job["spec"], "nodes": 2, "storage": {"endpoint": stack.storage.endpoint}, "template": BUSY}
    return {**job, "metadata": {"name": "left", "namespace": namespace}, "spec": spec}


def test_uninstalling_lets_go_of_a_gang_that_runs_so_that_its_namespace_ends(stack: Stack) -> None:
    stack.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "left"}})
    stack.apply(gang(stack, "left"))
    started = ["get", "pods", "-n", "left", "-o", "jsonpath={.items[*].status.initContainerStatuses[0].state.running.startedAt}"]
    wait_until(lambda: len(stack.cluster.kubectl(*started).split()) == 2, "both pods run", timeout_seconds=120)
    values = yaml.safe_load(stack.cluster.helm("get", "values", RELEASE, "-n", OPERATOR_NAMESPACE, "-o", "yaml"))
    try:
        stack.cluster.helm("uninstall", RELEASE, "-n", OPERATOR_NAMESPACE, "--wait", "--timeout", "120s")

        of_the_hook = "app.kubernetes.io/component=release"
        assert stack.cluster.kubectl("get", "jobs,pods", "-n", OPERATOR_NAMESPACE, "-l", of_the_hook, "-o", "name") == ""
        job = json.loads(stack.cluster.kubectl("get", "job", "left", "-n", "left", "-o", "json"))
        assert job["status"]["active"] == 2, "the gang goes on"
        assert job["spec"]["backoffLimit"] == 0
        stack.cluster.kubectl("delete", "namespace", "left", "--timeout=60s", timeout_seconds=90)
    finally:
        stack.install_operator(values)
