"""The chart as it runs on a real node: `helm test`, metrics through the Service, two replicas."""

import pytest

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
