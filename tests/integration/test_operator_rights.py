"""The operator under exactly the chart's roles: the API server never refuses it anything, and it uses all that it is given.

The API server's audit log says what was asked and what was answered. The life that the jobs lead here must reach every request
that the operator can make: a right that none of them uses goes out of the role, or its use comes in here.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from tests.integration.operator_harness import NAMESPACE, Installation, Kubelet, manifest, until

pytestmark = pytest.mark.slow

USER = f"system:serviceaccount:{NAMESPACE}:rewardfl-operator"
LEASE = {"enabled": True, "leaseName": "rewardfl-operator", "namespace": NAMESPACE}
Right = tuple[str, str, str]
"""API group, resource (with its part, such as pods/eviction) and verb."""

WORKLOAD_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "workloads.kueue.x-k8s.io"},
    "spec": {
        "group": "kueue.x-k8s.io",
        "names": {"kind": "Workload", "listKind": "WorkloadList", "plural": "workloads", "singular": "workload"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
"""Enough of Kueue for its Workloads to be listed and watched; tests/kueue has the real one."""


@dataclass(frozen=True)
class Request:
    """What the operator asked for, and how it was answered."""

    right: Right
    code: int
    what: str

    @classmethod
    def parse(cls, event: dict[str, Any]) -> "Request":
        target = event.get("objectRef", {})
        resource = "/".join(filter(None, (target.get("resource", ""), target.get("subresource", ""))))
        right = (target.get("apiGroup", ""), resource, event["verb"])
        return cls(right, event["responseStatus"]["code"], f"{event['verb']} {event['requestURI']}")

    @property
    def rights(self) -> set[Right]:
        """The rights that it was granted. A patch that makes the object needs the right to create it as well."""
        group, resource, verb = self.right
        created = {(group, resource, "create")} if (verb, self.code) == ("patch", 201) else set()
        return {self.right} | created if self.code < 400 else set()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder: Path = tmp_path_factory.mktemp("installation")
    with Installation.start(folder, audited_group=f"system:serviceaccounts:{NAMESPACE}") as installation:
        installation.create(WORKLOAD_DEFINITION)
        yield installation


def requests(installation: Installation, after: int = 0) -> list[Request]:
    """What the operator has asked for, without the first `after` lines of the log."""
    lines = installation.cluster.audit_log.read_text(encoding="utf-8").splitlines()[after:]
    events = [json.loads(line) for line in lines]
    return [Request.parse(event) for event in events if event["user"]["username"] == USER]


def granted(installation: Installation) -> set[Right]:
    """What the roles that the chart has made allow."""
    label = "app.kubernetes.io/instance=rewardfl,app.kubernetes.io/managed-by=Helm"
    roles = json.loads(installation.cluster.kubectl("get", "clusterroles,roles", "-A", "-l", label, "-o", "json"))["items"]
    of_the_operator = [role for role in roles if not role["metadata"]["name"].endswith(("-viewer", "-editor"))]
    rules = [rule for role in of_the_operator for rule in role["rules"]]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def passed_on(installation: Installation) -> set[Right]:
    """What the roles that the operator has made for jobs allow: nobody can pass on a right that he does not have."""
    label = "app.kubernetes.io/managed-by=rewardfl-operator"
    roles = json.loads(installation.cluster.kubectl("get", "roles", "-A", "-l", label, "-o", "json"))["items"]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Life:
    """Jobs, by names that begin with `prefix`, that together ask for everything that the operator can do."""

    def __init__(self, installation: Installation, prefix: str) -> None:
        self._in, self._prefix = installation, prefix

    def run(self) -> None:
        with self._in.operator(leaderElection=LEASE) as first:
            self._create()
            self._train()
            self._break_and_finish()
            self._edit()
            self._touch()
            self._in.cluster.kubectl("delete", "rewardfljob", self._name("gone"))
            assert first.stop() == 0
        with self._in.operator(leaderElection=LEASE) as second:  # takes the Lease over, and finds what there is
            self._in.create(manifest(self._name("late")))
            self._in.wait_for_pods(self._name("late"), 2)
            self._uninstall("late")
            assert second.stop() == 0

    def run_one(self) -> None:
        """Bring one job from its creation to its end."""
        name = self._name("good")
        with self._in.operator(leaderElection=LEASE) as operator:
            self._in.create(manifest(name, runPolicy={"cleanPodPolicy": "All"}))
            for pod in self._in.wait_for_pods(name, 2):
                Kubelet(self._in, name).stage(pod)
                Kubelet(self._in, name).end(pod)
            self._until("good", "no pods", lambda name: self._in.phase(name) == "Succeeded" and not self._in.pods(name))
            self._in.create(manifest(self._name("left")))
            self._in.wait_for_pods(self._name("left"), 2)
            self._uninstall("left")
            assert operator.stop() == 0

    def _name(self, job: str) -> str:
        return f"{self._prefix}-{job}"

    def _create(self) -> None:
        taken = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{self._name('taken')}-config"}}
        self._in.create(taken)
        self._in.create(manifest(self._name("taken")))
        self._in.create(manifest(self._name("greedy"), template={"spec": {"hostNetwork": True}}))
        self._in.create(manifest(self._name("misspelt"), template={"spec": {"nodeSelektor": {"gpu": "h100"}}}))
        self._in.create(manifest(self._name("gang"), template={"spec": {"priority": None, "tolerations": []}}))
        self._in.create(manifest(self._name("edited"), guard={"action": "Suspend", "kl": {"max": 1}}))
        for job in ("gone", "failed"):
            self._in.create(manifest(self._name(job)))
        queued = manifest(self._name("queued"))
        queued["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "gpus"}
        self._in.create(queued)
        self._in.create(manifest(self._name("brief"), runPolicy={"ttlSecondsAfterFinished": 0}))
        self._in.create(manifest(self._name("clean"), runPolicy={"cleanPodPolicy": "All"}))
        for job in ("taken", "greedy", "misspelt"):
            self._until(job, "refused", lambda name: self._in.condition(name, "Accepted").get("status") == "False")

    def _train(self) -> None:
        for job in ("gang", "edited", "failed", "brief", "clean"):
            kubelet = Kubelet(self._in, self._name(job))
            for pod in self._in.wait_for_pods(self._name(job), 2):
                kubelet.stage(pod)
                kubelet.train(pod)
            kubelet.report(phase="Training", step=1, total_steps=40)
        for job in ("gang", "edited", "failed", "brief", "clean"):
            self._until(job, "training", lambda name: self._in.phase(name) == "Training")
        gang = Kubelet(self._in, self._name("gang"))
        gang.report_text("not a report")
        self._until("gang", "the event about it", lambda name: "ProgressIgnored" in str(self._in.events(name)))
        gang.report(phase="Training", step=2, total_steps=40)
        self._until("gang", "the next report counts", lambda name: self._in.status(name).get("step") == 2)
        gang.report_text("not a report")
        said_again = ("", "events", "patch")
        self._until("gang", "the same event again", lambda _: said_again in {request.right for request in requests(self._in)})

    def _break_and_finish(self) -> None:
        gang, failed = (Kubelet(self._in, self._name(job)) for job in ("gang", "failed"))
        gang.end(self._in.running_pods(self._name("gang"))[1], 1)
        error = {"reason": Reason.NO_FACE_IN_FIRST_FRAME, "message": "row 3", "hint": "", "exitCode": 65, "rank": 0, "time": 1.0}
        failed.end(self._in.running_pods(self._name("failed"))[0], 65, json.dumps(error))
        for job in ("brief", "clean"):
            for pod in self._in.running_pods(self._name(job)):
                Kubelet(self._in, self._name(job)).end(pod)
            self._until(job, "succeeded", lambda name: self._in.phase(name) == "Succeeded")
        self._until("failed", "failed", lambda name: self._in.phase(name) == "Failed")
        self._until("brief", "no Kubernetes Job", lambda name: self._in.find("job", name) is None)
        self._until("clean", "no pods", lambda name: not self._in.pods(name))

        def renewed(name: str) -> bool:
            gang.remove_deleted()
            return all(pod["status"].get("phase") == "Pending" for pod in self._in.wait_for_pods(name, 2))

        self._until("gang", "a new attempt", renewed)

    def _edit(self) -> None:
        """Let a job's guard suspend it, change its shape, and let it go on."""
        name = self._name("edited")
        kubelet = Kubelet(self._in, name)
        trip = {
            "reason": Reason.KL_TOO_HIGH,
            "action": "Suspend",
            "step": 1,
            "time": datetime.now(UTC).isoformat(),
            "message": ".",
        }
        kubelet.report(phase="Training", step=1, total_steps=40, guard=trip)

        def suspended(name: str) -> bool:
            kubelet.remove_deleted()
            gone = "Pod" not in {child["kind"] for child in self._in.children(name)}
            return self._in.phase(name) == "Suspended" and gone

        self._until("edited", "suspended", suspended)
        self._in.patch("rewardfljob", name, {"spec": {"nodes": 1, "training": {"learningRate": 1e-3}}})
        self._until("edited", "made anew when it goes on", lambda name: self._in.find("job", name) is None)
        self._in.patch("rewardfljob", name, {"spec": {"runPolicy": {"suspend": False}}})
        self._in.wait_for_pods(name, 1)

    def _touch(self) -> None:
        """Write to the objects of a job as a person might; the operator looks, and applies them again."""
        kinds, label = "services,serviceaccounts,roles,rolebindings,networkpolicies,configmaps", "rewardfl.io/job-name"
        selector = f"{label}={self._name('edited')}"
        self._in.cluster.kubectl("annotate", kinds, "-l", selector, "touched=1")

        def applied(_: str) -> bool:
            items = json.loads(self._in.cluster.kubectl("get", kinds, "-l", selector, "-o", "json", "--show-managed-fields"))[
                "items"
            ]
            own = [item for item in items if not item["metadata"]["name"].endswith("-progress")]
            managers = [{(entry["manager"], entry["operation"]) for entry in item["metadata"]["managedFields"]} for item in own]
            return len(own) == 6 and all(("rewardfl-operator", "Apply") in of_one for of_one in managers)

        self._until("edited", "applied again", applied)

    def _uninstall(self, job: str) -> None:
        """Do what the chart does before it is uninstalled, with the same rights."""
        assert f"default/{self._name(job)}: released" in self._in.release("--patience-seconds", "0")

    def _until(self, job: str, what: str, check: Callable[[str], Any]) -> None:
        until(f"{self._name(job)}: {what}", lambda: check(self._name(job)))


@pytest.fixture(scope="module")
def everywhere(installation: Installation) -> list[Request]:
    """What the operator has asked for, as installed for the whole cluster."""
    Life(installation, "all").run()
    return requests(installation)


def test_the_operator_is_never_refused_anything(everywhere: list[Request]) -> None:
    assert len(everywhere) > 100
    assert [request.what for request in everywhere if request.code in (401, 403)] == []


def test_the_operator_uses_every_right_that_it_is_given(everywhere: list[Request], installation: Installation) -> None:
    used = {right for request in everywhere for right in request.rights}

    assert granted(installation) - used - passed_on(installation) == set()


def test_served_namespaces_are_enough_for_an_operator_that_serves_only_them(
    everywhere: list[Request], installation: Installation
) -> None:
    del everywhere
    installation.install({"watchNamespaces": ["default"], "rbac": {"aggregate": False}})
    assert "rewardfl" not in installation.cluster.kubectl("get", "clusterroles,clusterrolebindings", "-o", "name")
    installation.cluster.kubectl("create", "namespace", "foreign")
    before = len(installation.cluster.audit_log.read_text(encoding="utf-8").splitlines())
    foreign = manifest("foreign")
    foreign["metadata"]["namespace"] = "foreign"
    installation.create(foreign)

    Life(installation, "own").run_one()

    asked = requests(installation, before)
    assert ("coordination.k8s.io", "leases", "update") in {request.right for request in asked}
    assert len(asked) > 30
    assert [request.what for request in asked if request.code in (401, 403)] == []
    assert "status" not in installation.get("rewardfljob", "foreign", "foreign")
    may = installation.cluster.kubectl("auth", "can-i", "--list", f"--as={USER}", "--namespace=foreign")
    assert "rewardfl" not in may
    assert "foreign: left out" in installation.release(watchNamespaces=["foreign"])
    said = installation.release(watchNamespaces=[], exit_code=1)
    assert said.startswith("not released: the Jobs of all namespaces: 403: ")
    assert "--no-hooks" in said
