"""The chart as it runs on a real node: `helm test`, and metrics through the Service."""

import pytest

from tests.cluster import ClusterError
from tests.cluster.stack import OPERATOR_NAMESPACE, RELEASE, Stack

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
