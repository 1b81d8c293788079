"""What the cluster lets in, and what it does not, on a real API server with its own admission: the job says which, and heals."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.operator_harness import Installation, Operator, manifest, until

pytestmark = pytest.mark.slow

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
ALLOWED: dict[str, Any] = {"podPolicy": {"allowPrivileged": True, "allowHostPath": True, "allowHostNamespaces": True}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with Installation.start(tmp_path_factory.mktemp("admission")) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def operator(installation: Installation) -> Iterator[Operator]:
    with installation.operator(**ALLOWED) as running:
        yield running


class Team:
    """A namespace and what is seen in it."""

    def __init__(self, installation: Installation, name: str, labels: dict[str, str] | None = None) -> None:
        self._in, self.name = installation, name
        installation.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})
        until("its default account", lambda: "default" in self.run("get", "serviceaccounts", "-o", "name"))

    def run(self, *arguments: str) -> str:
        """kubectl in the namespace."""
        return self._in.cluster.kubectl(*arguments, "--namespace", self.name)

    def create(self, body: dict[str, Any]) -> None:
        self._in.create({**body, "metadata": {**body["metadata"], "namespace": self.name}})

    def listed(self, kind: str, job: str) -> list[dict[str, Any]]:
        return list(json.loads(self.run("get", kind, "-l", f"rewardfl.io/job-name={job}", "-o", "json"))["items"])

    def status(self, job: str) -> dict[str, Any]:
        return dict(self._in.get("rewardfljob", job, self.name).get("status") or {})

    def condition(self, job: str, kind: str) -> dict[str, Any]:
        found = [item for item in self.status(job).get("conditions", []) if item["type"] == kind]
        return dict(found[0]) if found else {}

    def says(self, job: str, reason: str) -> str:
        """Wait until the job is held up for `reason`, and return its words."""
        until(f"{job}: {reason}", lambda: self.condition(job, "Running").get("reason") == reason)
        assert self.status(job)["phase"] == "Pending"
        return str(self.condition(job, "Running")["message"])

    def heals(self, job: str, pods: int = 1) -> None:
        until(f"{job} has pods", lambda: len(self.listed("pods", job)) == pods)
        until(f"{job} is well", lambda: self.condition(job, "Running").get("reason") in ("PodsPending", "Unschedulable"))


def trainer(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "trainer", **fields}]}}


def test_the_default_pods_pass_the_restricted_pod_security_standard(installation: Installation) -> None:
    team = Team(installation, "restricted", RESTRICTED)

    team.create(manifest("default-pods", cache={"emptyDir": {"sizeLimit": "1Gi"}}))

    until("both pods are made", lambda: len(team.listed("pods", "default-pods")) == 2)


def test_a_privileged_template_in_a_restricted_namespace_waits_until_the_namespace_allows_it(installation: Installation) -> None:
    team = Team(installation, "strict", RESTRICTED)

    team.create(
        manifest("privileged", nodes=1, template=trainer(securityContext={"privileged": True, "allowPrivilegeEscalation": True}))
    )

    assert 'violates PodSecurity "restricted:latest": privileged' in team.says("privileged", "AdmissionRefused")
    installation.cluster.kubectl("label", "namespace", "strict", "--overwrite", "pod-security.kubernetes.io/enforce=privileged")
    team.heals("privileged")


def test_a_quota_that_is_used_up_is_named_and_the_job_goes_on_when_there_is_room(installation: Installation) -> None:
    team = Team(installation, "poor")
    team.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two"}, "spec": {"hard": {"pods": "1"}}})
    until("the quota is known", lambda: "pods" in team.run("get", "resourcequota", "two", "-o", "jsonpath={.status.hard}"))

    team.create(manifest("crowded"))

    assert "exceeded quota: two" in team.says("crowded", "QuotaExceeded")
    until(
        "a warning", lambda: "QuotaExceeded" in team.run("get", "events", "--field-selector", "involvedObject.kind=RewardFLJob")
    )
    team.run("delete", "resourcequota", "two")
    team.heals("crowded", 2)


def test_a_quota_on_the_operators_own_objects_is_named_too(installation: Installation) -> None:
    team = Team(installation, "few-objects")
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "no-jobs"},
        "spec": {"hard": {"count/jobs.batch": "0"}},
    }
    team.create(quota)
    until("the quota is known", lambda: "jobs" in team.run("get", "resourcequota", "no-jobs", "-o", "jsonpath={.status.hard}"))

    team.create(manifest("jobless", nodes=1))

    assert "exceeded quota: no-jobs" in team.says("jobless", "QuotaExceeded")


def test_a_limit_range_and_a_class_that_does_not_exist_are_named(installation: Installation) -> None:
    team = Team(installation, "limited")
    limits = {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}
    team.create({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": limits})

    team.create(manifest("large", nodes=1, template=trainer(resources={"limits": {"memory": "2Gi"}})))
    team.create(manifest("urgent", nodes=1, template={"spec": {"priorityClassName": "no-such-class"}}))

    assert "maximum memory usage per Container is 1Gi" in team.says("large", "AdmissionRefused")
    assert "no-such-class" in team.says("urgent", "AdmissionRefused")
    installation.create(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "no-such-class"}, "value": 1}
    )
    team.heals("urgent")


@pytest.mark.parametrize(
    ("name", "template", "words"),
    [
        ("misspelt", {"spec": {"nodeSelektor": {"gpu": "h100"}}}, 'unknown field "spec.template.spec.nodeSelektor"'),
        ("no-quantity", trainer(resources={"limits": {"memory": "much"}}), "quantities must match"),
        ("no-value", {"spec": {"dnsPolicy": "Sometimes"}}, "dnsPolicy"),
    ],
)
def test_a_bad_template_is_refused_before_anything_is_made(
    installation: Installation, name: str, template: dict[str, Any], words: str
) -> None:
    installation.create(manifest(name, template=template))

    until("refused", lambda: installation.condition(name, "Accepted").get("reason") == "InvalidTemplate")

    assert words in installation.condition(name, "Accepted")["message"]
    assert installation.children(name) == []
    assert installation.phase(name) == "Failed"


def test_nothing_that_was_only_tried_is_left(installation: Installation) -> None:
    found = json.loads(installation.cluster.kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]

    assert [pod["metadata"]["name"] for pod in found if pod["metadata"]["name"].endswith("-check")] == []
    assert "Forbidden" not in installation.operators[0].text()
