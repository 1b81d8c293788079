"""Runs the operator against a real control plane, as the chart installs it, and plays the kubelet that is not there.

API server, scheduler, Job controller and garbage collector are real. What a node would do (start containers, end them, remove
deleted pods) is done by `Kubelet`, by the same writes that a kubelet makes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import ClusterError, LocalCluster
from tests.cluster.paths import REPOSITORY

Raw = dict[str, Any]

CHART = REPOSITORY / "charts" / "rewardfl"
RELEASE, NAMESPACE = "rewardfl", "rewardfl-system"
NODE = "played-by-the-test"
PATIENCE_SECONDS = 90.0
"""On a busy machine everything takes its time; a wait that is over when its condition holds costs nothing."""

CHILD_KINDS = "jobs,pods,configmaps,services,serviceaccounts,roles,rolebindings,networkpolicies"
JOB_LABEL = "rewardfl.io/job-name"


def until(what: str, check: Callable[[], Any], patience_seconds: float = PATIENCE_SECONDS) -> Any:
    """Repeat `check` until it returns something true, and return that."""
    end = time.monotonic() + patience_seconds
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience_seconds:.0f} s: {what}; last answer: {answer!r}")
        time.sleep(0.2)


@dataclass
class Operator:
    """A running operator."""

    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """SIGTERM, and return the exit code."""
        self.process.terminate()
        return self.process.wait(timeout=30)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(timeout=30)

    def port(self) -> int | None:
        """Return the port of health and metrics; None before it says so."""
        found = re.search(r"health on port (\d+)", self.text())
        return int(found[1]) if found else None

    def health(self, path: str) -> int:
        """Return the status that the health port answers with; 0 when nobody answers."""
        port = self.port()
        if port is None:
            return 0
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def text(self) -> str:
        """Return what it has logged."""
        return self.log.read_text(encoding="utf-8")


class Installation:
    """The chart, installed in a control plane that has no node of its own."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.operators: list[Operator] = []

    @classmethod
    @contextmanager
    def start(cls, folder: Path, values: Raw | None = None, audited_group: str = "") -> Iterator["Installation"]:
        """Start a control plane, which logs what `audited_group` asks for, and install the chart."""
        with LocalCluster.start(control_plane_only=True, audited_group=audited_group) as cluster:
            installation = cls(cluster, folder)
            installation.install(values or {})
            node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"unschedulable": True}}
            installation.create(node)
            yield installation

    def install(self, values: Raw) -> None:
        """`helm upgrade --install`, without waiting for a Deployment that nobody runs."""
        file = self.folder / "values.yaml"
        file.write_text(yaml.safe_dump(values), encoding="utf-8")
        self.cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--create-namespace", "--values", str(file)
        )
        self.cluster.wait_for_definition("rewardfljobs.rewardfl.io")

    @contextmanager
    def operator(self, kubeconfig: str = "", **settings: Any) -> Iterator[Operator]:
        """Run the operator with the chart's settings, as the chart's service account; `settings` are its own, in camelCase."""
        running = self.launch(kubeconfig, **settings)
        try:
            yield running
        finally:
            if running.process.poll() is None:
                running.kill()

    def launch(self, kubeconfig: str = "", **settings: Any) -> Operator:
        """Start an operator and wait until it is ready."""
        operator = self.start_process(kubeconfig, **settings)
        try:
            until("the operator is ready", lambda: self._ready_or_dead(operator))
        except BaseException:
            operator.process.kill()
            raise
        return operator

    def release(self, *more: str, kubeconfig: str = "", exit_code: int = 0, **settings: Any) -> str:
        """Run what the chart runs before it is uninstalled, as the chart's service account, and return its log."""
        (hook,) = [
            document
            for document in yaml.safe_load_all(self.cluster.helm("get", "hooks", RELEASE, "--namespace", NAMESPACE))
            if document["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
        ]
        pod = hook["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == "rewardfl-operator"
        self._write_settings(self.folder / "settings.yaml", settings)
        arguments = [argument.replace("/etc/rewardfl-operator", str(self.folder)) for argument in container["args"]]
        command = [sys.executable, *container["command"][1:], *arguments, "--kubeconfig", kubeconfig or self.kubeconfig(), *more]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        assert ended.returncode == exit_code, ended.stderr
        return ended.stderr

    def start_process(self, kubeconfig: str = "", **settings: Any) -> Operator:
        """Start an operator. Unless it is told otherwise it is alone, and takes part in no election."""
        number = len(self.operators)
        file = self.folder / f"settings-{number}.yaml"
        self._write_settings(file, {"healthPort": 0, "resyncSeconds": 30, "leaderElection": {"enabled": False}, **settings})
        log = self.folder / f"operator-{number}.log"
        command = [sys.executable, "-m", "rewardfl_operator.main", "--settings", str(file)]
        command += ["--kubeconfig", kubeconfig or self.kubeconfig()]
        environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        operator = Operator(process, log)
        self.operators.append(operator)
        return operator

    def _write_settings(self, file: Path, own: Raw) -> None:
        """Write the settings that the chart has made, with some of one's own."""
        chart = self.get("configmap", "rewardfl-operator", NAMESPACE)["data"]["settings.yaml"]
        file.write_text(yaml.safe_dump({**yaml.safe_load(chart), **own}), encoding="utf-8")

    def kubeconfig(self) -> str:
        """Write a kubeconfig with a token of the chart's service account, and nothing else."""
        token = self.cluster.kubectl("create", "token", "rewardfl-operator", "--namespace", NAMESPACE, "--duration=1h").strip()
        admin = yaml.safe_load(self.cluster.kubeconfig.read_text(encoding="utf-8"))
        own = {**admin, "users": [{"name": admin["users"][0]["name"], "user": {"token": token}}]}
        file = self.folder / "operator.kubeconfig"
        file.write_text(yaml.safe_dump(own), encoding="utf-8")
        return str(file)

    def create(self, manifest: Raw) -> Raw:
        """`kubectl create`."""
        return dict(json.loads(self.cluster.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(manifest))))

    def get(self, kind: str, name: str, namespace: str = "default", managed_fields: bool = False) -> Raw:
        """`kubectl get`."""
        more = ["--show-managed-fields"] if managed_fields else []
        return dict(json.loads(self.cluster.kubectl("get", kind, name, "--namespace", namespace, "-o", "json", *more)))

    def find(self, kind: str, name: str, namespace: str = "default") -> Raw | None:
        """`kubectl get`, None when there is none."""
        try:
            return self.get(kind, name, namespace)
        except ClusterError as error:
            if "NotFound" in str(error):
                return None
            raise

    def children(self, job: str) -> list[Raw]:
        """Every object that carries the job's label."""
        answer = self.cluster.kubectl("get", CHILD_KINDS, "-l", f"{JOB_LABEL}={job}", "-o", "json")
        return list(json.loads(answer)["items"])

    def pods(self, job: str, namespace: str = "default") -> list[Raw]:
        """The job's pods that are not being deleted, by index."""
        listing = "get", "pods", "-n", namespace, "-l", f"{JOB_LABEL}={job}", "-o", "json"
        items = json.loads(self.cluster.kubectl(*listing))["items"]
        live = [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]
        return sorted(live, key=lambda pod: (index_of(pod), pod["metadata"]["creationTimestamp"]))

    def running_pods(self, job: str, namespace: str = "default") -> list[Raw]:
        """Those of them that have not ended."""
        return [pod for pod in self.pods(job, namespace) if pod["status"].get("phase") not in ("Succeeded", "Failed")]

    def events(self, job: str) -> list[Raw]:
        """The events of the RewardFLJob."""
        selector = f"involvedObject.kind=RewardFLJob,involvedObject.name={job}"
        return list(json.loads(self.cluster.kubectl("get", "events", "--field-selector", selector, "-o", "json"))["items"])

    def status(self, job: str, namespace: str = "default") -> Raw:
        """The job's status."""
        return dict(self.get("rewardfljob", job, namespace).get("status") or {})

    def phase(self, job: str, namespace: str = "default") -> str | None:
        """The job's phase."""
        return self.status(job, namespace).get("phase")

    def condition(self, job: str, kind: str) -> Raw:
        """One condition of the job; empty when it has none of that type."""
        found = [item for item in self.status(job).get("conditions", []) if item["type"] == kind]
        return dict(found[0]) if found else {}

    def patch(self, kind: str, name: str, patch: Raw, subresource: str = "", namespace: str = "default") -> None:
        """`kubectl patch` (JSON merge patch)."""
        part = [f"--subresource={subresource}"] if subresource else []
        self.cluster.kubectl("patch", kind, name, "-n", namespace, "--type=merge", "-p", json.dumps(patch), *part)

    def wait_for_pods(self, job: str, count: int, namespace: str = "default") -> list[Raw]:
        """Wait until the Job controller has made `count` pods that run or may run, and return them."""

        def all_there() -> list[Raw] | None:
            found = self.running_pods(job, namespace)
            return found if len(found) == count else None

        return list(until(f"{count} pods of {job}", all_there))

    def _ready_or_dead(self, operator: Operator) -> bool:
        if operator.process.poll() is not None:
            raise AssertionError(f"the operator ended with {operator.process.returncode}:\n{operator.text()}")
        return operator.health("/readyz") == 200


class Kubelet:
    """Does what a node's kubelet would, to the pods of one job."""

    def __init__(self, installation: Installation, job: str, namespace: str = "default") -> None:
        self._in, self._job, self._namespace = installation, job, namespace
        self._started: dict[str, str] = {}

    def bind(self, pod: Raw) -> None:
        """Take the pod onto the node (the scheduler's part)."""
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        name = pod["metadata"]["name"]
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(binding, file)
            file.flush()
            path = f"/api/v1/namespaces/{self._namespace}/pods/{name}/binding"
            self._in.cluster.kubectl("create", "--raw", path, "-f", file.name)

    def stage(self, pod: Raw) -> None:
        """Start the container `stage`."""
        self.bind(pod)
        self._status(pod, "Pending", stage={"running": {"startedAt": now()}}, trainer={"waiting": {"reason": "PodInitializing"}})

    def train(self, pod: Raw) -> None:
        """End `stage` well, and start `trainer`."""
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
        self._started[pod["metadata"]["uid"]] = now()
        started = {"startedAt": self._started[pod["metadata"]["uid"]]}
        self._status(pod, "Running", stage={"terminated": ended}, trainer={"running": started})

    def end(self, pod: Raw, code: int = 0, message: str = "", reason: str = "", container: str = "trainer") -> None:
        """End a container; the pod's phase follows."""
        ended = {"exitCode": code, "reason": reason or ("Error" if code else "Completed"), "message": message}
        ended |= {"startedAt": self._started.get(pod["metadata"]["uid"], now()), "finishedAt": now()}
        good = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
        stage = {"terminated": ended if container == "stage" else good}
        trainer = {"terminated": ended} if container == "trainer" else {"waiting": {"reason": "PodInitializing"}}
        self._status(pod, "Failed" if code else "Succeeded", stage=stage, trainer=trainer)

    def wait_with(self, pod: Raw, reason: str, message: str) -> None:
        """Fail to start `stage`, as with a missing image or Secret."""
        self._status(pod, "Pending", stage={"waiting": {"reason": reason, "message": message}}, trainer={"waiting": {}})

    def report(self, **document: Any) -> None:
        """Write a progress document (the trainer's part)."""
        text = json.dumps({"time": datetime.now(UTC).isoformat(), **document})
        self.report_text(text)

    def report_text(self, text: str) -> None:
        """Write anything as the progress document."""
        self._in.patch("configmap", f"{self._job}-progress", {"data": {"progress.json": text}}, namespace=self._namespace)

    def remove_deleted(self) -> None:
        """Remove pods that were deleted and whose containers have ended by then."""
        listing = "get", "pods", "-n", self._namespace, "-l", f"{JOB_LABEL}={self._job}", "-o", "json"
        for pod in json.loads(self._in.cluster.kubectl(*listing))["items"]:
            if "deletionTimestamp" in pod["metadata"]:
                with suppress(ClusterError):
                    if pod["status"].get("phase") not in ("Succeeded", "Failed"):
                        self.end(pod, 143)
                    at_once = "-n", self._namespace, "--grace-period=0", "--force", "--wait=false"
                    self._in.cluster.kubectl("delete", "pod", pod["metadata"]["name"], *at_once)

    def _status(self, pod: Raw, phase: str, stage: Raw, trainer: Raw) -> None:
        def container(name: str, state: Raw) -> Raw:
            return {"name": name, "state": state, "image": "i", "imageID": "i", "ready": False, "restartCount": 0}

        status = {
            "phase": phase,
            "startTime": pod["status"].get("startTime") or now(),
            "initContainerStatuses": [container("stage", stage)],
            "containerStatuses": [container("trainer", trainer)],
        }
        self._in.patch("pod", pod["metadata"]["name"], {"status": status}, subresource="status", namespace=self._namespace)


def index_of(pod: Raw) -> int:
    """The pod's completion index."""
    return int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest(name: str, **spec: Any) -> Raw:
    """A RewardFLJob with two CPU pods."""
    training = {
        "modelPaths": ["s3://models/wan22_paths.json"],
        "rewardModelPath": "s3://models/antelopev2/",
        "minTimestepBoundary": 0.9,
        "maxSteps": 40,
        **spec.pop("training", {}),
    }
    return {
        "apiVersion": "rewardfl.io/v1alpha1",
        "kind": "RewardFLJob",
        "metadata": {"name": name},
        "spec": {
            "nodes": 2,
            "gpusPerNode": 0,
            "storage": {"endpoint": "http://s3.example.com", "credentialsSecretName": "s3-credentials"},
            "dataset": "s3://data/faces/",
            "output": f"s3://results/{name}/",
            "training": training,
            **spec,
        },
    }
