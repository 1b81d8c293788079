"""What the chart renders: every branch, every value, and that the operator understands what it is told. Needs no cluster."""

import re
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from charts.generate import CHART, Value, read
from rewardfl_api import __version__
from rewardfl_api.crd import generate
from rewardfl_operator.release import PATIENCE_SECONDS
from rewardfl_operator.settings import OperatorSettings
from tests.chart.chart import (
    MATRIX,
    MUCH,
    NAMESPACE,
    NO_RIGHTS,
    PODS_ARE_SCRAPED,
    Manifest,
    annotations,
    one,
    render,
    render_text,
)
from tests.cluster.build import HELM
from tests.cluster.report import ClusterError, run

pytestmark = pytest.mark.slow

CONTROL = re.compile(r"^\s*\{\{-? (if|else|with|range)\b")
ANOTHER = {
    "image.digest": f"sha256:{'b' * 64}",
    "trainer.image.digest": f"sha256:{'b' * 64}",
    "trainer.podTemplate": {"spec": {"hostname": "x"}},
    "topologySpreadConstraints": [],
    "imagePullSecrets": [{"name": "another"}],
    "networkPolicy.operator.ingressFrom": [{"podSelector": {}}],
    "networkPolicy.operator.egress": [{}],
    "metrics.prometheusRule.disabledAlerts": ["RewardFLOperatorDown"],
}


def values_of_the_chart() -> tuple[Value, ...]:
    return read((CHART / "values.yaml").read_text(encoding="utf-8"))


def leaves(values: tuple[Value, ...]) -> list[Value]:
    return [leaf for value in values for leaf in (leaves(value.children) if value.children else [value])]


def with_value(values: Manifest, path: str, value: Any) -> Manifest:
    changed = deepcopy(values)
    place = changed
    *sections, name = path.split(".")
    for section in sections:
        place = place.setdefault(section, {})
    place[name] = value
    return changed


def test_the_chart_passes_helms_strict_lint() -> None:
    assert "0 chart(s) failed" in run([HELM.program("helm"), "lint", "--strict", str(CHART)])


def test_the_matrix_of_values_reaches_every_branch_of_the_templates(tmp_path: Path) -> None:
    copy = tmp_path / "rewardfl"
    shutil.copytree(CHART, copy)
    branches = set()
    for template in sorted(copy.glob("templates/**/*.yaml")):
        lines = template.read_text(encoding="utf-8").splitlines()
        for number in reversed(range(len(lines))):
            if CONTROL.match(lines[number]) and "fail" not in lines[number + 1]:
                mark = f"# reached {template.name}:{number + 1}"
                lines.insert(number + 1, mark)
                branches.add(mark)
        template.write_text("\n".join(lines), encoding="utf-8")

    rendered = "\n".join(render_text(values, str(copy)) for values in MATRIX.values())

    assert len(branches) > 40
    assert {mark for mark in branches if mark not in rendered} == set()


@pytest.mark.parametrize("value", leaves(values_of_the_chart()), ids=lambda value: value.path)
def test_every_value_changes_what_is_rendered(value: Value) -> None:
    """Beside other values: a tag is of no account beside a digest."""
    assert any(changes_the_rendering(value, name) for name in ("much", "nothing", "pods are scraped", "no rights"))


@cache
def text_of(name: str) -> str:
    return render_text(MATRIX[name])


def changes_the_rendering(value: Value, name: str) -> bool:
    base = MATRIX[name]
    chosen = another(value, base)
    try:
        text = render_text(with_value(base, value.path, chosen))
    except ClusterError:  # the two contradict each other
        return False
    shown = chosen if isinstance(chosen, str) else "another" if chosen == {"another": "x"} else ""
    return text != text_of(name) and shown in text


def another(value: Value, base: Manifest) -> Any:
    """A valid value that is neither the default nor that of `base`."""
    present: Any = base
    for name in value.path.split("."):
        present = present.get(name) if isinstance(present, dict) else None
    taken = (present, value.default)
    number = max((item for item in taken if isinstance(item, int | float)), default=0) + 1
    kinds = {
        bool: [True, False],
        int: [number],
        float: [number],
        dict: [{"another": "x"}],
        list: [[{"name": "x"}], ["x"]],
        str: ["9s"],
    }
    choices = value.limits.get("enum", kinds[type(value.default)])
    valid = [choice for choice in choices if is_valid(choice, value)]
    return ANOTHER.get(value.path) or next(
        choice for choice in valid if choice != (value.default if present is None else present)
    )


def is_valid(choice: Any, value: Value) -> bool:
    of = value.limits.get("items", {}).get("type")
    return not isinstance(choice, list) or (of == "object") == isinstance(choice[0], dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trainer": {"imag": {}}}, "imag"),
        ({"podPolicy": {"allowHostpath": True}}, "allowHostpath"),
        ({"imagePullPolicy": "Always"}, "imagePullPolicy"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"replicas": "two"}, "replicas"),
        ({"metrics": {"serviceMonitor": {"enabled": "yes"}}}, "serviceMonitor"),
        ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
        ({"replicas": 2, "leaderElection": {"enabled": False}}, "leaderElection.enabled=true"),
        ({"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}, "enable one of them"),
        ({"metrics": {"serviceMonitor": {"enabled": True}, "service": {"enabled": False}}}, "metrics.service.enabled=true"),
    ],
)
def test_values_that_are_misspelt_or_contradict_each_other_are_refused_by_name(values: Manifest, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        render(values)


def test_the_definition_it_installs_is_the_one_that_the_models_describe() -> None:
    found = one(render(), "CustomResourceDefinition")

    assert found["spec"] == generate()["spec"]
    assert found["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_chart_operator_and_package_are_of_one_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    images = yaml.safe_load(chart["annotations"]["artifacthub.io/images"])

    assert chart["version"] == chart["appVersion"] == __version__
    assert [image["image"] for image in images] == [f"rewardfl-operator:{__version__}", f"rewardfl-trainer:{__version__}"]


def test_namespaced_installations_have_no_rights_beyond_their_namespaces() -> None:
    found = render({"watchNamespaces": ["a", "b"], "rbac": {"aggregate": False}, "leaderElection": {"enabled": False}})

    installed = [item for item in found if "Role" in item["kind"] and not item["metadata"]["name"].endswith("-test")]
    kinds = [(item["kind"], item["metadata"].get("namespace")) for item in installed]
    assert sorted(kinds) == [("Role", "a"), ("Role", "b"), ("RoleBinding", "a"), ("RoleBinding", "b")]


def test_the_lease_is_the_only_thing_that_the_operator_may_touch_in_its_own_namespace() -> None:
    found = render({"watchNamespaces": ["a"]})

    (role,) = [item for item in found if item["kind"] == "Role" and item["metadata"]["name"].endswith("-leader")]
    assert role["metadata"]["namespace"] == NAMESPACE
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"leases"}
    named = [rule["verbs"] for rule in role["rules"] if rule.get("resourceNames") == ["rewardfl-operator"]]
    assert named == [["get", "update"]]


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_nobody_may_read_secrets_and_nothing_is_allowed_by_wildcard(values: Manifest) -> None:
    for item in render(values):
        for rule in item.get("rules", []):
            assert "secrets" not in rule["resources"]
            assert not {"*"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_every_object_carries_the_recommended_labels_and_those_of_the_values(values: Manifest) -> None:
    for item in render(values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == values.get("nameOverride", "rewardfl"), item["kind"]
        assert labels["app.kubernetes.io/version"] == __version__
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert values.get("commonLabels", {}).items() <= labels.items()
        assert values.get("commonAnnotations", {}).items() <= (item["metadata"].get("annotations") or {}).items()


def test_common_labels_cannot_replace_those_that_pods_are_found_by() -> None:
    found_by = {"commonLabels": {"app.kubernetes.io/name": "x"}, "podLabels": {"app.kubernetes.io/instance": "another"}}

    deployment = one(render(found_by), "Deployment")

    pod = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod.items()


def test_one_replica_is_replaced_and_several_roll() -> None:
    single, double = (one(render({"replicas": count}), "Deployment")["spec"] for count in (1, 2))

    assert single["strategy"] == {"type": "Recreate"}
    assert double["strategy"]["type"] == "RollingUpdate"
    assert double["replicas"] == 2


def test_a_spread_constraint_without_a_selector_counts_the_operators_pods() -> None:
    spec = one(render(MUCH), "Deployment")["spec"]

    (constraint,) = spec["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"] == spec["selector"]["matchLabels"]


def test_the_operators_own_policy_lets_in_only_whom_the_values_name_and_the_test() -> None:
    closed, opened = one(render(NO_RIGHTS), "NetworkPolicy")["spec"], one(render(MUCH), "NetworkPolicy")["spec"]

    assert (closed["policyTypes"], opened["policyTypes"]) == (["Ingress"], ["Ingress", "Egress"])
    (rule,) = closed["ingress"]
    names = {
        f"app.kubernetes.io/{key}": value
        for key, value in (("name", "rewardfl"), ("instance", "rewardfl"), ("component", "test"))
    }
    assert rule["from"] == [{"podSelector": {"matchLabels": names}}]
    assert rule["ports"] == [{"port": "health", "protocol": "TCP"}]
    assert opened["ingress"][0]["from"][1:] == MUCH["networkPolicy"]["operator"]["ingressFrom"]


@pytest.mark.parametrize(
    ("values", "kind", "endpoints"),
    [(MUCH, "ServiceMonitor", "endpoints"), (PODS_ARE_SCRAPED, "PodMonitor", "podMetricsEndpoints")],
)
def test_a_monitor_scrapes_the_operator_and_keeps_the_jobs_namespaces(values: Manifest, kind: str, endpoints: str) -> None:
    objects = render(values)
    (endpoint,) = one(objects, kind)["spec"][endpoints]
    (container,) = one(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    through = {"ServiceMonitor": "Service", "PodMonitor": "Deployment"}[kind]
    names = {port["name"] for port in (one(objects, through)["spec"].get("ports") or container["ports"])}

    assert endpoint["honorLabels"] is True
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "30s")
    assert endpoint["port"] in names
    labels = one(objects, through)["metadata"]["labels"]
    assert one(objects, kind)["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert one(objects, kind)["metadata"]["labels"]["release"] == "prometheus"


def test_the_test_pod_is_none_of_the_operators() -> None:
    objects = render(MUCH)
    selector = one(objects, "Service")["spec"]["selector"]
    (pod,) = [item for item in objects if item["kind"] == "Pod"]

    assert not selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
def test_what_runs_before_the_chart_is_uninstalled_is_the_operators_equal_and_none_of_its_pods(values: Manifest) -> None:
    objects = render(values)
    (job,) = [item for item in objects if annotations(item).get("helm.sh/hook") == "pre-delete"]
    template, operator = job["spec"]["template"], one(objects, "Deployment")["spec"]
    (container,), (of_operator,) = template["spec"]["containers"], operator["template"]["spec"]["containers"]

    assert job["kind"] == "Job"
    for field in (
        "serviceAccountName",
        "securityContext",
        "imagePullSecrets",
        "nodeSelector",
        "tolerations",
        "affinity",
        "volumes",
    ):
        assert template["spec"].get(field) == operator["template"]["spec"].get(field), field
    for field in ("image", "imagePullPolicy", "securityContext", "resources", "volumeMounts", "args"):
        assert container[field] == of_operator[field], field
    assert job["spec"]["activeDeadlineSeconds"] > PATIENCE_SECONDS
    selector = operator["selector"]["matchLabels"]
    assert not selector.items() <= template["metadata"]["labels"].items()


def test_nothing_runs_before_the_chart_is_uninstalled_where_that_is_switched_off() -> None:
    assert not [item for item in render({"uninstall": {"releaseJobs": False}}) if item["kind"] == "Job"]


def test_the_operator_understands_the_settings_that_the_chart_writes() -> None:
    template = {"spec": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}
    found = render(
        {
            "trainer": {
                "podTemplate": template,
                "imagePullSecrets": ["pull"],
                "image": {"registry": "r.example.com", "tag": "2"},
            },
            "podPolicy": {"allowHostPath": True, "allowedServiceAccounts": ["trainer"]},
            "networkPolicy": {"perJob": False},
            "watchNamespaces": ["a"],
            "operator": {"logFormat": "json", "resyncSeconds": 12.5},
        }
    )
    text = one(found, "ConfigMap")["data"]["settings.yaml"]

    settings = OperatorSettings.model_validate(yaml.safe_load(text))

    assert settings.trainer.image == "r.example.com/rewardfl-trainer:2"
    assert settings.trainer.pod_template == template
    assert settings.trainer.image_pull_secrets == ["pull"]
    assert settings.pod_policy.allow_host_path
    assert settings.pod_policy.allowed_service_accounts == ["trainer"]
    assert not settings.network_policy.per_job
    assert settings.watch_namespaces == ["a"]
    assert (settings.log_format, settings.resync_seconds) == ("json", 12.5)
