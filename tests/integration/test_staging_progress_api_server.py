"""The progress reporter against a real API server, with exactly the rights that a trainer pod has."""

import base64
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from rewardfl_api.progress import PROGRESS_KEY, Progress, StagingProgress
from rewardfl_api.trainer_config import ProgressTarget, TrainerConfig
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.staging.stage import POD_INDEX_VARIABLE, pod_reporter, stage
from tests.cluster import LocalCluster

NAMESPACE = "progress-test"
OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: progress-test}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: job-progress, namespace: progress-test, labels: {kept: "yes"}}
data: {other: kept}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: another-progress, namespace: progress-test}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: job, namespace: progress-test}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: job, namespace: progress-test}
rules:
- apiGroups: [""]
  resources: [configmaps]
  resourceNames: [job-progress]
  verbs: [get, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: job, namespace: progress-test}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: job}
subjects: [{kind: ServiceAccount, name: job, namespace: progress-test}]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(control_plane_only=True) as running:
        running.kubectl("apply", "-f", "-", stdin=OBJECTS)
        yield running


@pytest.fixture
def service_account(cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kubelet mounts into a pod, and sets in its environment."""
    importlib.import_module("rewardfl_trainer.progress_config_map")  # slow, and no part of what the tests time
    api = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = api.get("certificate-authority-data")
    content = base64.b64decode(authority) if authority else Path(api["certificate-authority"]).read_bytes()
    (tmp_path / "ca.crt").write_bytes(content)
    (tmp_path / "token").write_text(cluster.kubectl("create", "token", "job", f"--namespace={NAMESPACE}").strip())
    server = urlsplit(api["server"])
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(server.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    return tmp_path


def read(cluster: LocalCluster, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cluster.kubectl("get", "configmap", name, f"--namespace={NAMESPACE}", "-o", "json"))
    return found


def target(name: str = "job-progress") -> ProgressTarget:
    return ProgressTarget(namespace=NAMESPACE, config_map=name)


def test_progress_arrives_with_the_rights_of_a_trainer_pod_and_nothing_else_changes(
    cluster: LocalCluster, service_account: Path
) -> None:
    with Reporter(target(), service_account_dir=service_account) as reporter:
        reporter.update(phase="Staging", staging=StagingProgress(bytes_done=1, bytes_total=2))
    with Reporter(target(), service_account_dir=service_account) as reporter:
        reporter.update(phase="Training", step=4, total_steps=9, metrics={"reward": 0.25})

    found = read(cluster, "job-progress")
    document = Progress.model_validate_json(found["data"][PROGRESS_KEY])
    assert (document.phase, document.step, document.total_steps, document.metrics.reward) == ("Training", 4, 9, 0.25)
    assert document.staging == StagingProgress(bytes_done=1, bytes_total=2)
    assert found["data"]["other"] == "kept"
    assert found["metadata"]["labels"] == {"kept": "yes"}


def test_another_jobs_progress_cannot_be_written_and_training_goes_on(
    cluster: LocalCluster, service_account: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Reporter(target("another-progress"), service_account_dir=service_account) as reporter:
        reporter.update(phase="Training", step=1)

    assert "data" not in read(cluster, "another-progress")
    assert "progress cannot be reported" in caplog.text
    assert (service_account / "token").read_text() not in caplog.text


@pytest.mark.parametrize(("index", "reports"), [("0", True), ("1", False)])
def test_only_the_first_pod_reports_its_staging(
    cluster: LocalCluster, service_account: Path, monkeypatch: pytest.MonkeyPatch, index: str, reports: bool
) -> None:
    monkeypatch.setenv(POD_INDEX_VARIABLE, index)
    cluster.kubectl("patch", "configmap", "job-progress", f"--namespace={NAMESPACE}", "-p", '{"data": {"progress.json": ""}}')
    local = str(service_account)
    training = {"model_paths": [local], "reward_model_path": local, "tokenizer_path": local, "trainable_models": "dit"}
    where = {"dataset": local, "output": local, "cache_dir": f"{local}/cache", "work_dir": f"{local}/work"}
    config = TrainerConfig.model_validate({**where, "training": training, "progress": target()})

    stage(config, pod_reporter(config, service_account))

    assert bool(read(cluster, "job-progress")["data"][PROGRESS_KEY]) is reports
