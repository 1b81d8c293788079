"""The chart on a real API server: what it installs is accepted, what it upgrades stays, and what it leaves is what it says."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import CHART
from rewardfl_api import __version__
from rewardfl_api.crd import generate
from tests.chart.chart import MATRIX, NAMESPACE, SERVED, Manifest, one, render
from tests.cluster import ClusterError, LocalCluster, golang
from tests.cluster.paths import REPOSITORY, cache_root
from tests.cluster.report import wait_until

pytestmark = pytest.mark.slow

PREVIOUS = Path(__file__).parent / "fixtures" / "rewardfl-0.1.0.tgz"
"""The chart as it was released before, by `helm package`."""

OPERATOR_KINDS = (
    "deployments,configmaps,serviceaccounts,services,roles,rolebindings,networkpolicies,clusterroles,clusterrolebindings"
)
LABEL = "app.kubernetes.io/instance=rewardfl"
CRD = "rewardfljobs.rewardfl.io"
CRD_FILE = str(REPOSITORY / "crds" / "rewardfl.io_rewardfljobs.yaml")
EXAMPLE = str(REPOSITORY / "examples" / "rewardfljob-tiny.yaml")
MONITORING = ("servicemonitors", "podmonitors", "prometheusrules")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(control_plane_only=True) as cluster:
        for namespace in (NAMESPACE, SERVED):
            cluster.kubectl("create", "namespace", namespace)
        yield cluster


@pytest.fixture
def bare(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The cluster without a trace of the chart, before and after."""
    yield cluster
    if "rewardfl" in cluster.helm("list", "--namespace", NAMESPACE, "--short"):
        uninstall(cluster)
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", "--timeout=60s", timeout_seconds=90)


def install(cluster: LocalCluster, *more: str, chart: Path = CHART) -> None:
    cluster.helm("upgrade", "--install", "rewardfl", str(chart), "--namespace", NAMESPACE, *more)


def uninstall(cluster: LocalCluster) -> None:
    """`helm uninstall` without the Job that it begins with: there is no node here (tests/e2e has one)."""
    cluster.helm("uninstall", "rewardfl", "--namespace", NAMESPACE, "--no-hooks", "--wait")


def installed(cluster: LocalCluster) -> dict[str, Manifest]:
    """What the release has made, by kind and name."""
    items = json.loads(cluster.kubectl("get", OPERATOR_KINDS, "-A", "-l", LABEL, "-o", "json"))["items"]
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in items}


def definition(cluster: LocalCluster) -> Manifest:
    """The versions of the RewardFLJob definition as the API server has it."""
    found = json.loads(cluster.kubectl("get", "crd", CRD, "-o", "json"))
    return dict(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def create_job(cluster: LocalCluster) -> str:
    """Create a RewardFLJob and return its uid."""
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=60s")
    cluster.kubectl("apply", "-f", EXAMPLE)
    return job_uid(cluster)


def job_uid(cluster: LocalCluster) -> str:
    return cluster.kubectl("get", "rewardfljob", "face-tiny", "-o", "jsonpath={.metadata.uid}")


def schema_of(manifest: Manifest) -> Any:
    return manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_uninstalling_leaves_the_definition_and_the_jobs_and_nothing_else(bare: LocalCluster) -> None:
    install(bare)
    names = sorted(installed(bare))
    uid = create_job(bare)

    uninstall(bare)

    assert names == [
        "ClusterRole/rewardfl-system:rewardfl-operator",
        "ClusterRole/rewardfl-system:rewardfl-operator-editor",
        "ClusterRole/rewardfl-system:rewardfl-operator-viewer",
        "ClusterRoleBinding/rewardfl-system:rewardfl-operator",
        "ConfigMap/rewardfl-operator",
        "Deployment/rewardfl-operator",
        "Role/rewardfl-operator-leader",
        "RoleBinding/rewardfl-operator-leader",
        "Service/rewardfl-operator",
        "ServiceAccount/rewardfl-operator",
    ]
    assert installed(bare) == {}
    assert job_uid(bare) == uid


def test_without_crds_keep_uninstalling_leaves_nothing(bare: LocalCluster) -> None:
    install(bare, "--set", "crds.keep=false")

    uninstall(bare)

    assert installed(bare) == {}
    assert CRD not in bare.kubectl("get", "crds", "-o", "name")


def test_an_upgrade_changes_the_definition_the_rights_and_the_operator_and_keeps_the_jobs(bare: LocalCluster) -> None:
    install(bare, chart=PREVIOUS)
    uid = create_job(bare)
    before, schema = installed(bare), definition(bare)

    install(bare)

    after = installed(bare)
    assert schema != schema_of(generate())
    assert definition(bare) == schema_of(generate())
    assert job_uid(bare) == uid
    bare.kubectl("apply", "-f", EXAMPLE)
    deployment = after["Deployment/rewardfl-operator"]
    assert deployment["metadata"]["uid"] == before["Deployment/rewardfl-operator"]["metadata"]["uid"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"rewardfl-operator:{__version__}"
    assert deployment["metadata"]["generation"] > before["Deployment/rewardfl-operator"]["metadata"]["generation"]
    assert after["ClusterRole/rewardfl-system:rewardfl-operator"]["rules"] == one_operator_role(render())["rules"]
    assert before.keys() <= after.keys()


def one_operator_role(objects: list[Manifest]) -> Manifest:
    (found,) = [item for item in objects if item["metadata"]["name"] == "rewardfl-system:rewardfl-operator" and "rules" in item]
    return found


def test_an_upgrade_without_the_definition_leaves_it_to_be_applied_by_hand(bare: LocalCluster) -> None:
    install(bare, chart=PREVIOUS)
    uid, schema = create_job(bare), definition(bare)

    install(bare, "--set", "crds.enabled=false")

    assert definition(bare) == schema
    assert job_uid(bare) == uid
    bare.kubectl("apply", "-f", CRD_FILE)
    assert definition(bare) == schema_of(generate())
    assert job_uid(bare) == uid


def test_a_definition_that_was_applied_by_hand_is_taken_over_when_that_is_asked_for(bare: LocalCluster) -> None:
    bare.kubectl("apply", "-f", CRD_FILE)
    uid = create_job(bare)

    with pytest.raises(ClusterError, match=r"rewardfljobs\.rewardfl\.io.*cannot be imported"):
        install(bare)
    install(bare, "--take-ownership")

    assert job_uid(bare) == uid


def test_a_release_turns_from_the_whole_cluster_to_some_namespaces_without_rights_left_over(bare: LocalCluster) -> None:
    install(bare)

    install(bare, "--set", f"watchNamespaces={{{SERVED}}}", "--set", "rbac.aggregate=false")

    rights = {name: item["metadata"].get("namespace") for name, item in installed(bare).items() if "Role" in name}
    assert rights == {
        "Role/rewardfl-operator": SERVED,
        "RoleBinding/rewardfl-operator": SERVED,
        "Role/rewardfl-operator-leader": NAMESPACE,
        "RoleBinding/rewardfl-operator-leader": NAMESPACE,
    }


def test_who_may_view_or_edit_a_namespace_may_do_so_with_its_jobs(bare: LocalCluster) -> None:
    install(bare)
    for role in ("view", "edit"):
        bare.kubectl("create", "rolebinding", f"may-{role}", f"--clusterrole={role}", f"--user={role}er", "--namespace", SERVED)

    def may(user: str, verb: str, what: str) -> bool:
        review = {"user": user, "resourceAttributes": {"namespace": SERVED, "group": "rewardfl.io", "verb": verb}}
        review["resourceAttributes"] |= dict(zip(("resource", "subresource"), what.split("/"), strict=False))
        asked = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": review}
        answer = bare.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(asked))
        return bool(json.loads(answer)["status"]["allowed"])

    # The controller manager puts the rules into view and edit by and by.
    wait_until(lambda: may("viewer", "list", "rewardfljobs"), "view is extended", timeout_seconds=60)
    wait_until(lambda: may("editer", "patch", "rewardfljobs/scale"), "edit is extended", timeout_seconds=60)
    assert may("editer", "create", "rewardfljobs")
    assert may("editer", "list", "rewardfljobs")
    assert not may("viewer", "patch", "rewardfljobs")
    assert not may("viewer", "patch", "rewardfljobs/scale")
    assert not may("editer", "patch", "rewardfljobs/status")


@pytest.fixture(scope="module")
def monitoring(cluster: LocalCluster) -> LocalCluster:
    """The cluster with the definitions of Prometheus Operator."""
    names = [f"monitoring.coreos.com_{plural}.yaml" for plural in MONITORING]
    folder = golang.fetch(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
        [f"example/prometheus-operator-crd/{name}" for name in names],
        cache_root() / "prometheus-operator-crds-0.85.0",
    )
    for name in names:
        cluster.kubectl("create", "-f", str(folder / name))
    for plural in MONITORING:
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{plural}.monitoring.coreos.com", "--timeout=60s")
    return cluster


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_rendering_is_accepted_by_the_api_server(monitoring: LocalCluster, values: Manifest) -> None:
    objects = render(values)
    for account in [item for item in objects if item["kind"] == "ServiceAccount"]:  # admission looks for those of pods
        monitoring.kubectl("apply", "-f", "-", stdin=json.dumps(account))

    text = yaml.safe_dump_all(objects)
    accepted = monitoring.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)

    assert accepted.count("serverside-applied (server dry run)") == len(objects)


def test_a_field_that_no_api_knows_would_not_be_accepted(monitoring: LocalCluster) -> None:
    for item in render(MATRIX["much"]):
        if item["kind"] in ("Deployment", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"):
            wrong = {**item, "spec": {**item["spec"], "misspelt": 1}}
            with pytest.raises(ClusterError, match="misspelt"):
                monitoring.kubectl(
                    "apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(wrong)
                )


def test_the_operators_pod_and_those_of_the_hooks_are_restricted(cluster: LocalCluster) -> None:
    objects = render()
    pods = {
        "operator": one(objects, "Deployment")["spec"]["template"]["spec"],
        "test": next(item for item in objects if item["kind"] == "Pod")["spec"],
        "release": next(item for item in objects if item["kind"] == "Job")["spec"]["template"]["spec"],
    }
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": labels}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    for account in {spec["serviceAccountName"] for spec in pods.values()}:
        cluster.kubectl("create", "serviceaccount", account, "--namespace", "strict")
    for name, spec in pods.items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "strict"}, "spec": spec}
        assert "created" in cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))
        spec["containers"][0]["securityContext"] = {}
        with pytest.raises(ClusterError, match="violates PodSecurity"):
            cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(pod))


def test_what_helm_test_runs_accepts_an_installation_and_says_what_one_lacks(bare: LocalCluster) -> None:
    command = [
        sys.executable,
        "-m",
        "rewardfl_operator.installed",
        "--namespace",
        NAMESPACE,
        "--kubeconfig",
        str(bare.kubeconfig),
    ]

    before = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    bare.kubectl("apply", "-f", CRD_FILE)
    bare.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=60s")
    after = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (before.returncode, before.stderr.count("\n")) == (1, 1)
    assert "crds.enabled=true" in before.stderr
    assert (after.returncode, after.stderr) == (0, "")
    assert f"accepts a RewardFLJob of rewardfl {__version__}" in after.stdout
    assert bare.kubectl("get", "rewardfljobs", "-A", "-o", "name") == ""
