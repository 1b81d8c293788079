"""The pod template of a job: init container `stage`, container `trainer`. Pure builders; the tests read them as data.

How the pods of a gang find each other and end together: docs/decisions/0060-gang.md.
"""

import math
from typing import Any

from rewardfl_api.job import RewardFLJob
from rewardfl_api.spec import DEFAULT_GRACE_PERIOD_SECONDS, GRACE_PERIOD_VARIABLE, Cache
from rewardfl_api.trainer_config import CACHE_DIR, CONFIG_KEY, CONFIG_PATH, TERMINATION_LOG, WORK_DIR

from . import guard
from .merge import merge
from .names import labels, service_account_name, service_name
from .settings import OperatorSettings

STAGE, TRAINER = "stage", "trainer"
RENDEZVOUS_PORT = 29400
"""torchrun's own default."""

RENDEZVOUS_KEEP_ALIVE_SECONDS = 5
RENDEZVOUS_STORE_TIMEOUT_SECONDS = 60
SHUTDOWN_MARGIN_SECONDS, SHUTDOWN_MARGIN_SHARE = 20, 0.1
"""Left of the grace period for torchrun itself, after its workers have had theirs; of a short one only this share."""

KUBERNETES_GRACE_PERIOD_SECONDS = 30
"""What a pod has that names none."""

USER_ID = 65532
"""`nonroot` of the published images."""

SECRET_KEYS = (("AWS_ACCESS_KEY_ID", False), ("AWS_SECRET_ACCESS_KEY", False), ("AWS_SESSION_TOKEN", True))
"""Keys of the credentials Secret, and whether each may be absent."""

RESTRICTED_CONTAINER = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
RESTRICTED_POD = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def pod_template(job: RewardFLJob, settings: OperatorSettings) -> dict[str, Any]:
    """Return the pod template: the operator's own, then the chart's, then the job's.

    Raises:
        guard.TemplateError: the job's template asks for what is not allowed; the message names field, value and remedy.
    """
    policy = settings.pod_policy
    if job.spec.cache.host_path is not None and not policy.allow_host_path:
        raise guard.TemplateError(str(guard.Violation("cache.hostPath", job.spec.cache.host_path, "podPolicy.allowHostPath")))
    user = job.spec.template or {}
    guard.check_shape(user)
    grace_seconds = _grace_seconds(settings.trainer.pod_template, user)
    baseline = merge(_own_template(job, settings, grace_seconds), settings.trainer.pod_template)
    merged = merge(baseline, user)
    guard.check_policy(baseline, merged, policy, service_account_name(job))
    return merged


def _grace_seconds(*templates: dict[str, Any]) -> int:
    """Return the grace period that pods will have, so that torchrun and trainer keep to it. A bad one the API server refuses."""
    merged: dict[str, Any] = {"spec": {"terminationGracePeriodSeconds": DEFAULT_GRACE_PERIOD_SECONDS}}
    for template in templates:
        merged = merge(merged, {"spec": template.get("spec") or {}})
    seconds = merged["spec"].get("terminationGracePeriodSeconds", KUBERNETES_GRACE_PERIOD_SECONDS)
    return seconds if isinstance(seconds, int) else DEFAULT_GRACE_PERIOD_SECONDS


def _own_template(job: RewardFLJob, settings: OperatorSettings, grace_seconds: int) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": labels(job),
            "annotations": {"kubectl.kubernetes.io/default-container": TRAINER},
        },
        "spec": {
            "restartPolicy": "Never",
            "subdomain": service_name(job),
            "serviceAccountName": service_account_name(job),
            "automountServiceAccountToken": True,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": RESTRICTED_POD,
            "imagePullSecrets": [{"name": name} for name in settings.trainer.image_pull_secrets],
            "initContainers": [_stage(job, settings)],
            "containers": [_trainer(job, settings, grace_seconds)],
            "volumes": _volumes(job),
        },
    }


def _stage(job: RewardFLJob, settings: OperatorSettings) -> dict[str, Any]:
    """The container that fetches models and dataset. Every pod runs it: each has a cache of its own, or finds it filled."""
    return {
        **_container(job, settings),
        "name": STAGE,
        "command": ["python", "-m", "rewardfl_trainer.staging"],
        "args": ["--config", CONFIG_PATH],
        "env": _common_environment(job),
    }


def _trainer(job: RewardFLJob, settings: OperatorSettings, grace_seconds: int) -> dict[str, Any]:
    """The container that trains: a launcher around torchrun that keeps the exit code of the rank that failed first."""
    container = {
        **_container(job, settings),
        "name": TRAINER,
        "command": ["python", "-m", "rewardfl_trainer.launch"],
        "args": ["-m", "rewardfl_trainer.train", "--config", CONFIG_PATH],
        "env": _common_environment(job) + _torchrun_environment(job, settings, grace_seconds),
        "ports": [{"name": "rendezvous", "containerPort": RENDEZVOUS_PORT}],
    }
    if job.spec.gpus_per_node:
        container["resources"] = {"limits": {settings.trainer.gpu_resource_name: str(job.spec.gpus_per_node)}}
    return container


def _container(job: RewardFLJob, settings: OperatorSettings) -> dict[str, Any]:
    """What both containers have in common. Termination messages come from the file alone: a log's tail may hold anything."""
    return {
        "image": job.spec.image or settings.trainer.image,
        "imagePullPolicy": settings.trainer.image_pull_policy,
        "securityContext": RESTRICTED_CONTAINER,
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_PATH.rsplit("/", 1)[0], "readOnly": True},
            {"name": "cache", "mountPath": CACHE_DIR},
            {"name": "work", "mountPath": WORK_DIR},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir of the pod's own
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - likewise
        ],
    }


def _common_environment(job: RewardFLJob) -> list[dict[str, Any]]:
    """HOME, since the image's may be read-only, and the storage credentials by reference."""
    environment: list[dict[str, Any]] = [{"name": "HOME", "value": WORK_DIR}]
    secret = job.spec.storage.credentials_secret_name
    for key, optional in SECRET_KEYS if secret is not None else ():
        reference: dict[str, Any] = {"name": secret, "key": key}
        if optional:
            reference["optional"] = True
        environment.append({"name": key, "valueFrom": {"secretKeyRef": reference}})
    return environment


def _torchrun_environment(job: RewardFLJob, settings: OperatorSettings, grace_seconds: int) -> list[dict[str, Any]]:
    """torchrun's settings: each of its options is also a PET_ variable. The Job controller adds JOB_COMPLETION_INDEX."""
    configuration = {
        "join_timeout": settings.trainer.rendezvous_timeout_seconds,
        "last_call_timeout": 1,
        "read_timeout": RENDEZVOUS_STORE_TIMEOUT_SECONDS,
        "keep_alive_interval": RENDEZVOUS_KEEP_ALIVE_SECONDS,
    }
    variables = {
        "PET_NNODES": str(job.spec.nodes),
        "PET_NPROC_PER_NODE": str(job.spec.processes_of_a_node),
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{job.metadata.name}-0.{service_name(job)}:{RENDEZVOUS_PORT}",
        "PET_RDZV_ID": job.metadata.uid,
        "PET_RDZV_CONF": ",".join(f"{key}={value}" for key, value in configuration.items()),
        "PET_MAX_RESTARTS": "0",
        "PET_SHUTDOWN_TIMEOUT": str(_shutdown_seconds(grace_seconds)),
        GRACE_PERIOD_VARIABLE: str(grace_seconds),
    }
    return [{"name": key, "value": value} for key, value in variables.items()]


def _shutdown_seconds(grace_seconds: int) -> int:
    """Return how long torchrun waits for its workers after SIGTERM; they have at least a second."""
    margin = min(SHUTDOWN_MARGIN_SECONDS, math.ceil(SHUTDOWN_MARGIN_SHARE * grace_seconds))
    return max(1, grace_seconds - margin)


def _volumes(job: RewardFLJob) -> list[dict[str, Any]]:
    return [
        {"name": "config", "configMap": {"name": job.config_name, "items": [{"key": CONFIG_KEY, "path": CONFIG_KEY}]}},
        {"name": "cache", **_cache(job.spec.cache)},
        {"name": "work", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _cache(cache: Cache) -> dict[str, Any]:
    """The volume that `spec.cache` means."""
    if cache.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": {"claimName": cache.persistent_volume_claim}}
    if cache.host_path is not None:
        return {"hostPath": {"path": cache.host_path, "type": "DirectoryOrCreate"}}
    limit = cache.empty_dir.size_limit if cache.empty_dir is not None else None
    return {"emptyDir": {"sizeLimit": limit} if limit is not None else {}}
