"""Everything that the operator makes for a job, as data. Pure: same job and settings, same objects."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rewardfl_api.errors import FINAL_EXIT_CODES
from rewardfl_api.job import API_VERSION, KIND, RewardFLJob
from rewardfl_api.trainer_config import CONFIG_KEY, TrainerConfig

from . import names
from .pods import RENDEZVOUS_PORT, STAGE, TRAINER, pod_template
from .settings import OperatorSettings

Manifest = dict[str, Any]

SHAPE_FIELDS = {
    "nodes", "gpus_per_node", "processes_per_node", "image", "storage", "dataset", "output", "cache", "training", "deepspeed",
    "guard", "template",
}  # fmt: skip
"""Fields of the spec that pods have read when they run, or that a Kubernetes Job cannot take over. It is made anew for them."""


@dataclass(frozen=True)
class Asked:
    """What the operator has asked of the fields of a Kubernetes Job that it shares with others."""

    suspend: bool
    labels: dict[str, str]

    def dump(self) -> str:
        """Return the annotation's text."""
        return json.dumps({"suspend": self.suspend, "labels": self.labels}, sort_keys=True)

    @classmethod
    def of(cls, live: Manifest) -> "Asked":
        """Read what was asked of the live Job; of one that does not say so, what it shows."""
        try:
            read = json.loads((live["metadata"].get("annotations") or {}).get(names.ASKED_ANNOTATION, ""))
            return cls(bool(read["suspend"]), {str(key): str(value) for key, value in read["labels"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            labels = {key: value for key, value in (live["metadata"].get("labels") or {}).items() if key in names.QUEUE_LABELS}
            return cls(bool(live.get("spec", {}).get("suspend")) and not labels, labels)


def supporting_objects(job: RewardFLJob, settings: OperatorSettings) -> list[Manifest]:
    """Return what must stand before the first pod starts, in the order in which it is applied."""
    account = names.service_account_name(job)
    objects = [
        _object(job, "v1", "ConfigMap", job.config_name, data={CONFIG_KEY: TrainerConfig.from_job(job).dump()}),
        progress_config_map(job),
        _object(job, "v1", "ServiceAccount", account, automountServiceAccountToken=False),
        _object(job, "rbac.authorization.k8s.io/v1", "Role", account, rules=[_progress_rule(job)]),
        _object(job, "rbac.authorization.k8s.io/v1", "RoleBinding", account, **_binding(job)),
        _object(job, "v1", "Service", names.service_name(job), spec=_headless(job)),
    ]
    if settings.network_policy.per_job:
        objects.append(_object(job, "networking.k8s.io/v1", "NetworkPolicy", job.metadata.name, spec=_only_own_pods(job)))
    return objects


def progress_config_map(job: RewardFLJob) -> Manifest:
    """Return the ConfigMap that the trainer reports to. It has no data here, so applying it never overwrites a report."""
    manifest = _object(job, "v1", "ConfigMap", job.progress_name)
    manifest["metadata"]["labels"][names.PART_LABEL] = names.PROGRESS_PART
    return manifest


def indexed_job(job: RewardFLJob, settings: OperatorSettings) -> Manifest:
    """Return the Indexed Job.

    Raises:
        guard.TemplateError: the job's template asks for what is not allowed.
    """
    spec, policy = job.spec, job.spec.run_policy
    manifest = _object(job, "batch/v1", "Job", job.metadata.name)
    manifest["metadata"]["labels"].update(names.queue_labels(job))
    is_queued = names.QUEUE_LABEL in job.metadata.labels
    manifest["metadata"]["annotations"] = {
        names.SHAPE_ANNOTATION: shape(job),
        names.GENERATION_ANNOTATION: str(job.metadata.generation),
        names.ASKED_ANNOTATION: Asked(policy.suspend, names.queue_labels(job)).dump(),
    }
    manifest["spec"] = {
        "completionMode": "Indexed",
        "completions": spec.nodes,
        "parallelism": spec.nodes,
        **_retries(job),
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "suspend": policy.suspend or is_queued,  # Kueue lets it go on
        "template": pod_template(job, settings),
    }
    if policy.active_deadline_seconds is not None:
        manifest["spec"]["activeDeadlineSeconds"] = policy.active_deadline_seconds
    return manifest


def _retries(job: RewardFLJob) -> Manifest:
    """How often the Job controller tries again.

    A gang fails as a whole, so each index may fail as often as the gang may: counted over all pods, a job of eight nodes would
    use up eight retries at once. With one pod both counts are the same; the plain one also lets go of its pods when their
    namespace ends and no operator is there to help (docs/decisions/0108-namespaces-that-end.md).
    """
    limit = job.spec.run_policy.backoff_limit
    return {"backoffLimit": limit} if job.spec.nodes == 1 else {"backoffLimitPerIndex": limit, "maxFailedIndexes": 0}


def shape(job: RewardFLJob) -> str:
    """Return a hash of what the Kubernetes Job cannot take over once it was made."""
    # Without what is at its default: a field that a later version adds must not look like an edit.
    fields = job.spec.model_dump(mode="json", include=SHAPE_FIELDS, exclude_defaults=True)
    text = json.dumps({**fields, "backoff_limit": job.spec.run_policy.backoff_limit}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def owner_reference(job: RewardFLJob) -> Manifest:
    """Return the reference by which Kubernetes' garbage collector removes the job's objects with it."""
    return {"apiVersion": API_VERSION, "kind": KIND, "name": job.metadata.name, "uid": job.metadata.uid, "controller": True}


def _object(job: RewardFLJob, api_version: str, kind: str, name: str, **fields: Any) -> Manifest:
    metadata = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": names.labels(job),
        "ownerReferences": [owner_reference(job)],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def _progress_rule(job: RewardFLJob) -> Manifest:
    """A pod of the job may read and patch this one ConfigMap, and nothing else."""
    return {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [job.progress_name], "verbs": ["get", "patch"]}


def _binding(job: RewardFLJob) -> Manifest:
    account = names.service_account_name(job)
    return {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": job.metadata.namespace}],
    }


def _headless(job: RewardFLJob) -> Manifest:
    """Host names must resolve before the pods are ready: meeting each other is how they become so."""
    port = {"name": "rendezvous", "port": RENDEZVOUS_PORT, "targetPort": RENDEZVOUS_PORT, "protocol": "TCP"}
    selector = {names.JOB_LABEL: job.metadata.name}
    return {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector, "ports": [port]}


def _only_own_pods(job: RewardFLJob) -> Manifest:
    """torch.distributed has no authentication: whoever reaches its ports is a member."""
    pods = {"matchLabels": {names.JOB_LABEL: job.metadata.name}}
    return {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]}


def _failure_rules() -> list[Manifest]:
    """Errors in configuration and data end the job at once; disruptions are not counted; everything else is."""
    codes = sorted(int(code) for code in FINAL_EXIT_CODES)
    final = [
        {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": codes}}
        for container in (STAGE, TRAINER)
    ]
    return [*final, {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
