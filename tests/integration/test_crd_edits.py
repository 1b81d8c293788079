"""What a real API server lets people change of a job, and when."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster import ClusterError, LocalCluster
from tests.integration.test_crd import BASE, CRD

pytestmark = pytest.mark.slow

CHANGES: dict[str, dict[str, Any]] = {
    "training": {"training": {"learningRate": 0.5}},
    "deepspeed": {"deepspeed": {"preset": "zero3"}},
    "template": {"template": {"spec": {"priorityClassName": "high"}}},
    "guard": {"guard": {"kl": {"max": 1}}},
    "template removed": {"template": None},
    "image": {"image": "other:1"},
    "storage": {"storage": {"region": "eu-west-1"}},
    "cache": {"cache": {"persistentVolumeClaim": "models"}},
    "nodes": {"nodes": 3},
    "gpusPerNode": {"gpusPerNode": 1},
    "processesPerNode": {"processesPerNode": 2},
    "runPolicy.backoffLimit": {"runPolicy": {"backoffLimit": 7}},
}
ALWAYS: dict[str, dict[str, Any]] = {
    "activeDeadlineSeconds": {"runPolicy": {"activeDeadlineSeconds": 60}},
    "ttlSecondsAfterFinished": {"runPolicy": {"ttlSecondsAfterFinished": 60}},
    "cleanPodPolicy": {"runPolicy": {"cleanPodPolicy": "All"}},
    "suspend": {"runPolicy": {"suspend": True}},
}
NEVER: dict[str, dict[str, Any]] = {
    "dataset": {"dataset": "s3://other/dataset/"},
    "output": {"output": "s3://other/output/"},
    "managedBy": {"managedBy": "kueue.x-k8s.io/multikueue"},
}

Edit = Callable[..., None]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(control_plane_only=True) as running:
        running.kubectl("apply", "-f", str(CRD))
        running.wait_for_definition("rewardfljobs.rewardfl.io")
        for name, status in STATUSES.items():
            manifest = copy.deepcopy(BASE)
            manifest["metadata"]["name"] = name
            manifest["spec"]["runPolicy"] = {"suspend": name == "suspended"}
            running.kubectl("create", "-f", "-", stdin=json.dumps(manifest))
            patch = json.dumps({"status": status})
            running.kubectl("patch", "rfl", name, "--subresource=status", "--type=merge", "-p", patch)
        yield running


def accepted(status: str) -> dict[str, str]:
    return {"type": "Accepted", "status": status, "reason": "x", "lastTransitionTime": "2026-01-01T00:00:00Z"}


STATUSES: dict[str, dict[str, Any]] = {
    "running": {"phase": "Training", "conditions": [accepted("True")], "workers": {"active": 2}},
    "suspended": {"phase": "Suspended", "conditions": [accepted("True")]},
    "refused": {"phase": "Failed", "conditions": [accepted("False")]},
    "finished": {"phase": "Succeeded", "conditions": [accepted("True")]},
}


def edit(cluster: LocalCluster, name: str, spec: dict[str, Any]) -> None:
    """Try a change; nothing is stored."""
    patch = json.dumps({"spec": spec})
    cluster.kubectl("patch", "rfl", name, "--type=merge", "--dry-run=server", "-p", patch)


@pytest.mark.parametrize("what", CHANGES)
def test_what_pods_were_made_from_cannot_be_changed_under_them(cluster: LocalCluster, what: str) -> None:
    field = what.split(maxsplit=1)[0]
    with pytest.raises(ClusterError, match=rf"spec\.{field}: cannot be changed while the job runs; set runPolicy\.suspend"):
        edit(cluster, "running", CHANGES[what])


@pytest.mark.parametrize("what", CHANGES)
def test_it_can_be_changed_while_the_job_is_suspended_or_was_refused(cluster: LocalCluster, what: str) -> None:
    edit(cluster, "suspended", CHANGES[what])
    edit(cluster, "refused", CHANGES[what])


def test_a_change_may_come_with_the_suspension_and_with_its_end(cluster: LocalCluster) -> None:
    edit(cluster, "running", {"training": {"learningRate": 0.5}, "runPolicy": {"suspend": True}})
    edit(cluster, "suspended", {"training": {"learningRate": 0.5}, "runPolicy": {"suspend": False}})


@pytest.mark.parametrize("what", ALWAYS)
def test_the_run_policy_can_be_changed_at_any_time(cluster: LocalCluster, what: str) -> None:
    for name in STATUSES:
        edit(cluster, name, ALWAYS[what])


@pytest.mark.parametrize("what", NEVER)
def test_what_a_job_is_can_never_be_changed(cluster: LocalCluster, what: str) -> None:
    for name in STATUSES:
        with pytest.raises(ClusterError, match=rf"spec\.{what}: cannot be changed; create a new job"):
            edit(cluster, name, NEVER[what])


@pytest.mark.parametrize("what", CHANGES)
def test_a_finished_job_says_that_nothing_would_come_of_a_change(cluster: LocalCluster, what: str) -> None:
    with pytest.raises(ClusterError, match="the job has finished, so nothing would come of the change; delete it, or create"):
        edit(cluster, "finished", {**CHANGES[what], "runPolicy": {"suspend": True, **CHANGES[what].get("runPolicy", {})}})


def test_kubectl_scale_changes_the_nodes_of_a_suspended_job_and_of_no_running_one(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match=r"spec\.nodes: cannot be changed while the job runs"):
        cluster.kubectl("scale", "rewardfljob", "running", "--replicas=4")
    with pytest.raises(ClusterError, match="greater than or equal to 1"):
        cluster.kubectl("scale", "rewardfljob", "suspended", "--replicas=0")

    cluster.kubectl("scale", "rewardfljob", "suspended", "--replicas=4")

    assert cluster.kubectl("get", "rfl", "suspended", "-o", "jsonpath={.spec.nodes}") == "4"
    scale = json.loads(cluster.kubectl("get", "rfl", "running", "--subresource=scale", "-o", "json"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)


@pytest.mark.parametrize("name", ["operator", "Rewardfl.io/x", "a b/c", "example.com/", "x" * 60 + ".io/y"])
def test_managed_by_is_a_name_with_a_domain(cluster: LocalCluster, name: str) -> None:
    manifest = copy.deepcopy(BASE)
    manifest["spec"]["managedBy"] = name
    with pytest.raises(ClusterError, match=r"spec\.managedBy"):
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
