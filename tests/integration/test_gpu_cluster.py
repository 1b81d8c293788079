"""A real API server accepts what docs/gpu-cluster.md shows, and every example. (The queue: test_operator_kueue.py.)"""

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from rewardfl_api.job import RewardFLJob
from rewardfl_api.validation import problems_of
from rewardfl_operator.admission import pod_of
from rewardfl_operator.guard import TemplateError
from rewardfl_operator.merge import merge
from rewardfl_operator.pods import pod_template
from rewardfl_operator.resources import indexed_job
from rewardfl_operator.settings import OperatorSettings
from tests.chart.chart import render
from tests.cluster import ClusterError, LocalCluster
from tests.cluster.paths import REPOSITORY
from tests.integration.gpu_page import (
    BLOCKS,
    EXAMPLES,
    KUBERNETES,
    KUEUES,
    MANIFESTS,
    NAMESPACE,
    SPECS,
    TEXT,
    VALUES,
    example,
)

pytestmark = pytest.mark.slow

Raw = dict[str, Any]
CHECK = re.search(r"^    (kubectl run gpu-check .*)$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A control plane with our definition, with what the page makes (but for Kueue's kinds), and with NVIDIA's runtime class."""
    with LocalCluster.start(control_plane_only=True) as running:
        running.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds" / "rewardfl.io_rewardfljobs.yaml"))
        running.wait_for_definition("rewardfljobs.rewardfl.io")
        runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"}
        for manifest in (runtime, *KUBERNETES):
            running.kubectl("create", "--validate=strict", "-f", "-", stdin=json.dumps(manifest))
        running.kubectl("create", "namespace", "open")
        yield running


def settings(*values: Raw) -> OperatorSettings:
    """What the operator is told by the chart with these values."""
    merged: Raw = {}
    for value in values:
        merged = merge(merged, value)
    return OperatorSettings.model_validate(yaml.safe_load(one_settings(render(merged))))


def one_settings(objects: list[Raw]) -> str:
    (found,) = [item["data"]["settings.yaml"] for item in objects if "settings.yaml" in item.get("data", {})]
    return str(found)


def try_out(cluster: LocalCluster, manifest: Raw, namespace: str) -> None:
    """A dry run by the API server. ClusterError says what it has against it."""
    manifest = copy.deepcopy(manifest)
    manifest["metadata"]["namespace"] = namespace
    manifest["metadata"].pop("ownerReferences", None)
    cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(manifest))


def pod(body: Raw, told: OperatorSettings) -> Raw:
    job = RewardFLJob.parse({**body, "metadata": {**body["metadata"], "uid": "11111111-2222-3333-4444-555555555555"}})
    return pod_of(indexed_job(job, told), job)


def test_the_page_has_blocks_of_every_kind_and_no_other() -> None:
    assert len(VALUES) + len(SPECS) + len(MANIFESTS) == len(BLOCKS)
    assert (len(VALUES), len(SPECS), len(KUBERNETES), len(KUEUES)) == (3, 2, 2, 3)


def test_the_check_of_a_gpu_is_a_command_that_the_api_server_accepts(cluster: LocalCluster) -> None:
    assert CHECK is not None
    overrides = re.search(r"--overrides='(.*)'$", CHECK[1].replace("'$IMAGE'", "an/image"))
    assert overrides is not None
    pod_that_checks = json.loads(
        cluster.kubectl(
            "run", "gpu-check", "--restart=Never", "--image=an/image", f"--overrides={overrides[1]}",
            "--dry-run=server", "-o", "json", "--namespace=open",
        )
    )  # fmt: skip
    container = pod_that_checks["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    compile(container["command"][2], "check", "exec")


def test_the_chart_takes_the_values_and_they_reach_the_pods() -> None:
    spec = pod_template(RewardFLJob.parse(example()), settings(VALUES[0]))["spec"]
    assert spec["containers"][0]["image"].startswith("registry.example.com/team/rewardfl-trainer:")
    assert {"name": "NCCL_SOCKET_IFNAME", "value": "eth0"} in spec["containers"][0]["env"]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in spec["containers"][0]["env"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize("block", SPECS, ids=["cache", "shm"])
def test_what_a_job_may_say_is_accepted(cluster: LocalCluster, block: Raw) -> None:
    body = example()
    if "cache" in block["spec"]:
        del body["spec"]["cache"]
        with pytest.raises(TemplateError, match=r"podPolicy\.allowHostPath"):
            pod(merge(body, block), settings())
    try_out(cluster, {**merge(body, block), "metadata": {"name": "tried"}}, NAMESPACE)
    try_out(cluster, pod(merge(body, block), settings(*VALUES[:2])), "open")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_valid_and_their_pods_are_let_into_a_restricted_namespace(cluster: LocalCluster, name: str) -> None:
    assert problems_of(example(name)) == []
    try_out(cluster, {**example(name), "metadata": {"name": "tried"}}, NAMESPACE)
    tried = pod(example(name), settings())
    try_out(cluster, tried, NAMESPACE)
    named = {volume["name"]: volume for volume in example(name)["spec"]["template"]["spec"].get("volumes", [])}
    assert [volume for volume in tried["spec"]["volumes"] if volume["name"] in named] == [
        named[volume["name"]] for volume in tried["spec"]["volumes"] if volume["name"] in named
    ]
    assert len([volume for volume in tried["spec"]["volumes"] if volume["name"] in named]) == len(named)


def test_what_the_examples_expect_of_their_namespace_is_accepted(cluster: LocalCluster) -> None:
    text = (REPOSITORY / "examples" / "namespace.yaml").read_text(encoding="utf-8")
    for manifest in yaml.safe_load_all(text):
        cluster.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
            stdin=json.dumps(manifest),
        )


def test_locked_memory_for_root_is_the_installations_to_give_and_not_a_jobs(cluster: LocalCluster) -> None:
    with_lock = pod(example(), settings(VALUES[2]))
    assert with_lock["spec"]["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    try_out(cluster, with_lock, "open")
    for level in ("baseline", "restricted"):
        cluster.kubectl("label", "namespace", "open", "--overwrite", f"pod-security.kubernetes.io/enforce={level}")
        with pytest.raises(ClusterError, match=r'violates PodSecurity.*"IPC_LOCK"'):
            try_out(cluster, with_lock, "open")
    cluster.kubectl("label", "namespace", "open", "pod-security.kubernetes.io/enforce-")
    body = merge(example(), {"spec": {"template": {"spec": VALUES[2]["trainer"]["podTemplate"]["spec"]}}})
    with pytest.raises(TemplateError, match=r"capabilities\.add=\['IPC_LOCK'\]: not allowed.*podPolicy\.allowPrivileged"):
        pod(body, settings())
