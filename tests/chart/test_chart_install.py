"""The chart on a real API server: what it installs is accepted, and what it leaves behind is what it says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewardfl_api.crd import generate
from rewardfl_operator.settings import OperatorSettings
from tests.cluster import ClusterError, LocalCluster
from tests.cluster.paths import REPOSITORY

pytestmark = pytest.mark.slow

CHART = str(REPOSITORY / "charts" / "rewardfl")
NAMESPACE = "rewardfl-system"
OPERATOR_KINDS = (
    "deployments,configmaps,serviceaccounts,services,roles,rolebindings,networkpolicies,clusterroles,clusterrolebindings"
)
LABEL = "app.kubernetes.io/instance=rewardfl"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(control_plane_only=True) as cluster:
        yield cluster


class KubernetesLoader(yaml.SafeLoader):
    """Reads 1e-08 as a number, as Kubernetes does and PyYAML, which follows YAML 1.1 to the letter, does not."""


KubernetesLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+e[-+]?[0-9]+$"), list("-+0123456789"))


def rendered(cluster: LocalCluster, folder: Path, **values: Any) -> list[dict[str, Any]]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    # Without --kube-version helm renders for the version that it was linked with, which here is none.
    arguments = ["template", "rewardfl", CHART, "--namespace", NAMESPACE, "--values", str(file), "--kube-version", "1.34.4"]
    text = cluster.helm(*arguments)
    return [document for document in yaml.load_all(text, KubernetesLoader) if document]


def install(cluster: LocalCluster, folder: Path, **values: Any) -> None:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = ["upgrade", "--install", "rewardfl", CHART, "--namespace", NAMESPACE, "--create-namespace", "--values", str(file)]
    cluster.helm(*arguments)


def installed(cluster: LocalCluster) -> list[str]:
    answer = cluster.kubectl("get", OPERATOR_KINDS, "-A", "-l", LABEL, "-o", "json")
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in json.loads(answer)["items"])


def has_crd(cluster: LocalCluster) -> bool:
    return "rewardfljobs.rewardfl.io" in cluster.kubectl("get", "crds", "-o", "name")


def test_uninstalling_leaves_the_definition_and_the_jobs_and_nothing_else(cluster: LocalCluster, tmp_path: Path) -> None:
    install(cluster, tmp_path)
    names = installed(cluster)
    cluster.kubectl("wait", "--for=condition=Established", "crd/rewardfljobs.rewardfl.io", "--timeout=60s")
    cluster.kubectl("apply", "-f", str(REPOSITORY / "examples" / "rewardfljob-tiny.yaml"))

    cluster.helm("uninstall", "rewardfl", "--namespace", NAMESPACE, "--wait")

    assert names == [
        "ClusterRole/rewardfl-system:rewardfl-operator",
        "ClusterRole/rewardfl-system:rewardfl-operator-editor",
        "ClusterRole/rewardfl-system:rewardfl-operator-viewer",
        "ClusterRoleBinding/rewardfl-system:rewardfl-operator",
        "ConfigMap/rewardfl-operator",
        "Deployment/rewardfl-operator",
        "Role/rewardfl-operator-leader",
        "RoleBinding/rewardfl-operator-leader",
        "ServiceAccount/rewardfl-operator",
    ]
    assert installed(cluster) == []
    assert "face-tiny" in cluster.kubectl("get", "rewardfljobs", "-o", "name")


def test_without_crds_keep_uninstalling_leaves_nothing(cluster: LocalCluster, tmp_path: Path) -> None:
    install(cluster, tmp_path, crds={"keep": False})

    cluster.helm("uninstall", "rewardfl", "--namespace", NAMESPACE, "--wait")

    assert installed(cluster) == []
    assert not has_crd(cluster)


def test_the_definition_it_installs_is_the_one_that_the_models_describe(cluster: LocalCluster, tmp_path: Path) -> None:
    (found,) = [item for item in rendered(cluster, tmp_path) if item["kind"] == "CustomResourceDefinition"]

    assert found["spec"] == generate()["spec"]
    assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_every_rendering_is_accepted_by_the_api_server(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.kubectl("create", "namespace", "served")
    cluster.kubectl("create", "namespace", NAMESPACE, "--dry-run=client", "-o", "name")
    everything = {
        "image": {"registry": "registry.example.com", "digest": f"sha256:{'a' * 64}"},
        "imagePullSecrets": [{"name": "pull"}],
        "commonLabels": {"team": "vision"},
        "commonAnnotations": {"owner": "me"},
        "watchNamespaces": ["served"],
        "serviceAccount": {"annotations": {"a": "b"}},
        "priorityClassName": "system-cluster-critical",
        "nodeSelector": {"a": "b"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "podLabels": {"c": "d"},
        "podAnnotations": {"e": "f"},
        "extraEnv": [{"name": "A", "value": "1"}],
        "extraVolumes": [{"name": "x", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}],
        "operator": {"logFormat": "json", "workers": 2},
    }
    for values in ({}, everything):
        for item in rendered(cluster, tmp_path, **values):
            target = ["--namespace", "default"] if item["kind"] in ("Deployment", "ConfigMap", "ServiceAccount") else []
            item["metadata"].pop("namespace", None) if target else None
            cluster.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", *target, stdin=json.dumps(item))


def test_namespaced_installations_have_no_rights_beyond_their_namespaces(cluster: LocalCluster, tmp_path: Path) -> None:
    found = rendered(cluster, tmp_path, watchNamespaces=["a", "b"], rbac={"aggregate": False})

    kinds = [(item["kind"], item["metadata"].get("namespace")) for item in found if "Role" in item["kind"]]
    served = [("Role", "a"), ("Role", "b"), ("RoleBinding", "a"), ("RoleBinding", "b")]
    assert sorted(kinds) == sorted([*served, ("Role", NAMESPACE), ("RoleBinding", NAMESPACE)])  # the last two: its Lease


def test_the_operator_may_read_no_secrets_and_nothing_by_wildcard(cluster: LocalCluster, tmp_path: Path) -> None:
    for item in rendered(cluster, tmp_path):
        for rule in item.get("rules", []):
            assert "secrets" not in rule["resources"]
            assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


def test_the_operator_understands_the_settings_that_the_chart_writes(cluster: LocalCluster, tmp_path: Path) -> None:
    template = {"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}
    found = rendered(
        cluster,
        tmp_path,
        trainer={"podTemplate": template, "imagePullSecrets": ["pull"], "image": {"registry": "r.example.com", "tag": "2"}},
        podPolicy={"allowHostPath": True, "allowedServiceAccounts": ["trainer"]},
        networkPolicy={"perJob": False},
        watchNamespaces=["a"],
        operator={"logFormat": "json", "resyncSeconds": 12.5},
    )
    (text,) = [item["data"]["settings.yaml"] for item in found if item["kind"] == "ConfigMap"]

    settings = OperatorSettings.model_validate(yaml.safe_load(text))

    assert settings.trainer.image == "r.example.com/rewardfl-trainer:2"
    assert settings.trainer.pod_template == template
    assert settings.trainer.image_pull_secrets == ["pull"]
    assert settings.pod_policy.allow_host_path
    assert settings.pod_policy.allowed_service_accounts == ["trainer"]
    assert not settings.network_policy.per_job
    assert settings.watch_namespaces == ["a"]
    assert (settings.log_format, settings.resync_seconds) == ("json", 12.5)


def test_the_operators_pod_is_restricted(cluster: LocalCluster, tmp_path: Path) -> None:
    (deployment,) = [item for item in rendered(cluster, tmp_path) if item["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "strict", "labels": labels}}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(namespace))
    cluster.kubectl("create", "serviceaccount", pod["spec"]["serviceAccountName"], "--namespace", "strict")
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator"}, "spec": pod["spec"]}

    assert "created" in cluster.kubectl(
        "create", "--dry-run=server", "--namespace", "strict", "-f", "-", stdin=json.dumps(manifest)
    )


def test_misspelt_values_are_refused_by_name(cluster: LocalCluster, tmp_path: Path) -> None:
    for values, name in (
        ({"trainer": {"imag": {}}}, "imag"),
        ({"podPolicy": {"allowHostpath": True}}, "allowHostpath"),
        ({"imagePullPolicy": "Always"}, "imagePullPolicy"),
    ):
        with pytest.raises(ClusterError, match=name):
            rendered(cluster, tmp_path, **values)


def test_every_value_is_documented_and_in_the_schema() -> None:
    text = (REPOSITORY / "charts" / "rewardfl" / "values.yaml").read_text(encoding="utf-8")
    schema = json.loads((REPOSITORY / "charts" / "rewardfl" / "values.schema.json").read_text(encoding="utf-8"))

    def compare(values: dict[str, Any], node: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            assert key in node["properties"], f"{path}{key} is not in the schema"
            assert f"{key}:" in text
            if isinstance(value, dict) and "properties" in node["properties"][key] and value:
                compare(value, node["properties"][key], f"{path}{key}.")

    compare(yaml.safe_load(text), schema, "")
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.strip().endswith(":") or line.strip().startswith("#") or not line.strip() or line.startswith("  requests"):
            continue
        if line.startswith("  limits"):
            continue
        assert lines[number - 1].strip().startswith("#"), f"values.yaml:{number + 1} is not documented: {line}"
