"""Everything that the operator makes for a job, as data. Pure: same job and settings, same objects."""

import hashlib
import json
from typing import Any

from rewardfl_api.errors import FINAL_EXIT_CODES
from rewardfl_api.job import API_VERSION, KIND, RewardFLJob
from rewardfl_api.trainer_config import CONFIG_KEY, TrainerConfig

from . import names
from .pods import RENDEZVOUS_PORT, STAGE, TRAINER, pod_template
from .settings import OperatorSettings

Manifest = dict[str, Any]

SHAPE_FIELDS = {"nodes", "gpus_per_node", "processes_per_node", "image", "storage", "cache", "template"}
"""Fields of the spec that end up in the Kubernetes Job's unchangeable part. A suspended job is made anew when they change."""


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
    manifest["metadata"]["annotations"] = {names.SHAPE_ANNOTATION: shape(job)}
    manifest["spec"] = {
        "completionMode": "Indexed",
        "completions": spec.nodes,
        "parallelism": spec.nodes,
        # A gang fails as a whole, so each index may fail as often as the gang may: counted over all pods, a job of
        # eight nodes would use up eight retries at once.
        "backoffLimitPerIndex": policy.backoff_limit,
        "maxFailedIndexes": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules()},
        "suspend": policy.suspend or names.QUEUE_LABEL in job.metadata.labels,
        "template": pod_template(job, settings),
    }
    if policy.active_deadline_seconds is not None:
        manifest["spec"]["activeDeadlineSeconds"] = policy.active_deadline_seconds
    return manifest


def job_changes(job: RewardFLJob, live: Manifest, recorded_as_finished: bool) -> Manifest:
    """Return the patch that brings the changeable fields of the live Kubernetes Job up to date; empty when they are.

    `suspend` is left alone when a queue owns it. The TTL is set only once the result stands in the RewardFLJob's status:
    a Job that vanished before would be made again, and train again.
    """
    policy, spec = job.spec.run_policy, live.get("spec", {})
    wanted: Manifest = {"activeDeadlineSeconds": policy.active_deadline_seconds}
    if names.QUEUE_LABEL not in job.metadata.labels:
        wanted["suspend"] = policy.suspend
    if recorded_as_finished:
        wanted = {"ttlSecondsAfterFinished": policy.ttl_seconds_after_finished}
    changes = {key: value for key, value in wanted.items() if spec.get(key) != value}
    return {"spec": changes} if changes else {}


def shape(job: RewardFLJob) -> str:
    """Return a hash of what the Kubernetes Job cannot take over once it was made."""
    text = json.dumps(job.spec.model_dump(mode="json", include=SHAPE_FIELDS), sort_keys=True)
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
