"""Jobs, pods and Kubernetes Jobs as the API server would show them, for the operator's unit tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from rewardfl_api.job import RewardFLJob
from rewardfl_api.progress import Progress
from rewardfl_api.status import Condition, RewardFLJobStatus
from rewardfl_operator.observed import Children, JobSeen, Pod

START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
UID = "11111111-2222-3333-4444-555555555555"
JOB_UID = "99999999-8888-7777-6666-555555555555"


def at(seconds: float) -> str:
    """A time, `seconds` after the tests' beginning, as Kubernetes writes it."""
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def body(labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A RewardFLJob with two CPU pods."""
    training = {
        "modelPaths": ["s3://models/wan22_paths.json"],
        "rewardModelPath": "s3://models/antelopev2/",
        "minTimestepBoundary": 0.9,
        **spec.pop("training", {}),
    }
    return {
        "apiVersion": "rewardfl.io/v1alpha1",
        "kind": "RewardFLJob",
        "metadata": {
            "name": "face",
            "namespace": "team",
            "uid": UID,
            "generation": 3,
            "resourceVersion": "7",
            "labels": labels or {},
        },
        "spec": {
            "nodes": 2,
            "gpusPerNode": 0,
            "dataset": "s3://data/faces/",
            "output": "s3://results/face/",
            "training": training,
            **spec,
        },
    }


def job(labels: dict[str, str] | None = None, **spec: Any) -> RewardFLJob:
    return RewardFLJob.parse(body(labels, **spec))


QUEUE_LABELS = {"kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/priority-class": "high"}


def condition(kind: str, status: str = "True", reason: str = "", message: str = "", seconds: float = 0) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at(seconds)}


def kubernetes_job(*conditions: dict[str, Any], suspend: bool = False, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "face", "namespace": "team", "uid": JOB_UID, "ownerReferences": [{"uid": UID, "controller": True}]},
        "spec": {"suspend": suspend},
        "status": {"startTime": at(0), "conditions": list(conditions), **status},
    }


def running(name: str, since: float) -> dict[str, Any]:
    return {"name": name, "state": {"running": {"startedAt": at(since)}}}


def waiting(name: str, reason: str = "PodInitializing", message: str = "") -> dict[str, Any]:
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}}


def ended(name: str, code: int, since: float, until: float, message: str = "", reason: str = "") -> dict[str, Any]:
    state = {"exitCode": code, "startedAt": at(since), "finishedAt": at(until), "message": message, "reason": reason}
    return {"name": name, "state": {"terminated": state}}


def pod(
    index: int,
    *containers: dict[str, Any],
    phase: str = "Running",
    created: float = 0,
    deleting: bool = False,
    conditions: tuple[dict[str, Any], ...] = (),
    **status: Any,
) -> dict[str, Any]:
    """A pod of the job. `containers` are those of running(), waiting() and ended()."""
    metadata: dict[str, Any] = {
        "name": f"face-{index}-{created:.0f}",
        "namespace": "team",
        "uid": f"pod-{index}-{created:.0f}",
        "creationTimestamp": at(created),
        "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
        "ownerReferences": [{"uid": JOB_UID, "controller": True}],
    }
    if deleting:
        metadata["deletionTimestamp"] = at(created + 1)
    return {
        "metadata": metadata,
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "initContainerStatuses": [item for item in containers if item["name"] == "stage"],
            "containerStatuses": [item for item in containers if item["name"] != "stage"],
            **status,
        },
    }


def training_pod(index: int, since: float, created: float = 0) -> dict[str, Any]:
    """A pod that has staged and trains since `since`."""
    return pod(index, ended("stage", 0, created, since), running("trainer", since), created=created)


def children(*pods: dict[str, Any], live: dict[str, Any] | None = None) -> Children:
    return Children(JobSeen.parse(live or kubernetes_job(active=len(pods))), tuple(map(Pod.parse, pods)))


def progress(seconds: float, **fields: Any) -> Progress:
    return Progress.model_validate({"phase": "Training", "time": START + timedelta(seconds=seconds), **fields})


def find(found: RewardFLJobStatus, kind: str) -> Condition:
    return next(item for item in found.conditions if item.type == kind)
