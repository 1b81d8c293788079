"""What the operator is told at its start: the file that the chart renders, checked once, typed from then on.

It decides nothing about a single job; that stands in the job's own spec.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, StringConstraints, model_validator

from rewardfl_api.base import ApiModel

Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]


class PodPolicy(ApiModel):
    """What `spec.template` and `spec.cache` of a job may ask for beyond restricted pods. Nothing, unless it is allowed here."""

    allow_host_path: bool = False
    """hostPath volumes, also as cache.hostPath."""
    allow_host_namespaces: bool = False
    """hostNetwork, hostPID, hostIPC and host ports."""
    allow_privileged: bool = False
    """privileged, added capabilities, privilege escalation, root, unconfined seccomp and the like."""
    allowed_service_accounts: list[Name] = Field(default_factory=list)
    """Service accounts, beside the job's own, that a template may name. "*" allows every one of the namespace."""


class TrainerSettings(ApiModel):
    """Defaults of every job's pods."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = "rewardfl-trainer:latest"
    """Image of jobs that name none."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the trainer image."""
    image_pull_secrets: list[Name] = Field(default_factory=list)
    """Names of pull secrets in the jobs' namespaces."""
    gpu_resource_name: Name = "nvidia.com/gpu"
    """Resource that a GPU is asked for by."""
    pod_template: dict[str, Any] = Field(default_factory=dict)
    """Partial pod template merged into every job before its own. Trusted: podPolicy does not apply to it."""
    rendezvous_timeout_seconds: Annotated[int, Field(ge=10, le=7 * 24 * 3600)] = 7200
    """Time that a pod waits for the others of its job before it counts as failed: staging takes nodes different times."""


class NetworkPolicySettings(ApiModel):
    """Network policies that the operator makes."""

    per_job: bool = True
    """Make one for each job, which lets in only the job's own pods."""


class LeaderElectionSettings(ApiModel):
    """Which of several replicas does the work. Times as in client-go, where they have proved themselves."""

    enabled: bool = True
    """Lead only while holding a Lease. Without it there must never be two operators at once."""
    lease_name: Name = "rewardfl-operator"
    """Name of the Lease."""
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    """Namespace of the Lease. Empty: the pod's own."""
    lease_duration_seconds: Annotated[int, Field(ge=1, le=3600)] = 15
    """How long the others wait after the leader's last renewal before one of them takes over."""
    renew_deadline_seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """How long the leader goes on after its last renewal. Less than leaseDurationSeconds, so that two never lead at once."""
    retry_seconds: Annotated[float, Field(gt=0, le=600)] = 2.0
    """How often the leader renews the Lease, and the others look at it."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.retry_seconds < self.renew_deadline_seconds < self.lease_duration_seconds:
            raise ValueError(
                f"retrySeconds={self.retry_seconds:g}, renewDeadlineSeconds={self.renew_deadline_seconds:g},"
                f" leaseDurationSeconds={self.lease_duration_seconds}: each must be less than the next (2, 10, 15)"
            )
        return self


class OperatorSettings(ApiModel):
    """Everything that the operator is told."""

    trainer: TrainerSettings = Field(default_factory=TrainerSettings)
    """Defaults of every job's pods."""
    pod_policy: PodPolicy = Field(default_factory=PodPolicy)
    """What jobs may ask for."""
    network_policy: NetworkPolicySettings = Field(default_factory=NetworkPolicySettings)
    """Network policies that the operator makes."""
    watch_namespaces: list[Name] = Field(default_factory=list)
    """Namespaces to serve. Empty: all of them."""
    leader_election: LeaderElectionSettings = Field(default_factory=LeaderElectionSettings)
    """Which of several replicas does the work."""
    workers: Annotated[int, Field(ge=1, le=256)] = 8
    """Jobs reconciled at the same time."""
    resync_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """How often the list of jobs is compared with what the watch has told."""
    watch_silence_seconds: Annotated[float, Field(gt=0, le=3600)] = 70.0
    """A watch that is silent for longer is opened anew. The API server sends a bookmark about once a minute."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port of /healthz and /readyz. 0 takes a free one."""
    log_format: Literal["text", "json"] = "text"
    """Form of the log."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe message that is logged."""

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the settings file; None means the defaults.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not valid (pydantic's ValidationError is one).
        """
        if path is None:
            return cls()
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
