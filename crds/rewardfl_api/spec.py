"""The spec of a RewardFLJob: what the user asks for."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationInfo, model_validator

from .base import ApiModel
from .contradictions import Contradiction, report
from .deepspeed import DeepSpeedPreset, preset_config
from .guard import Guard, contradictions
from .training import TrainingParameters
from .uris import S3_PATTERN, SOURCE_PATTERN

MAX_NODES = 1024
MAX_PROCESSES_PER_NODE = 64
DEFAULT_GRACE_PERIOD_SECONDS = 300
"""Time between SIGTERM and SIGKILL: enough to write and upload a checkpoint of a LoRA."""

GRACE_PERIOD_VARIABLE = "REWARDFL_GRACE_PERIOD_SECONDS"
"""Environment variable that tells the trainer the grace period of its pod."""

OWN_CONTROLLER_NAME = "rewardfl.io/operator"
"""What `managedBy` calls this operator."""

_DOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
CONTROLLER_NAME_PATTERN = rf"^{_DOMAIN}/[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$"
"""A path with a domain before it, as batch/v1 wants it for a Job's managedBy."""

SourceUri = Annotated[str, StringConstraints(pattern=SOURCE_PATTERN, max_length=4096)]
OutputUri = Annotated[str, StringConstraints(pattern=S3_PATTERN, max_length=4096)]
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
ControllerName = Annotated[str, StringConstraints(pattern=CONTROLLER_NAME_PATTERN, max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kKMGTPE]i?)?$", max_length=32)]


class Storage(ApiModel):
    """The object storage that s3:// URIs refer to."""

    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://[^\s/@]+/?$", max_length=2048)] | None = None
    """URL of the S3 service, e.g. https://s3.example.com. Unset: AWS."""
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] = "us-east-1"
    """Region of the S3 service."""
    credentials_secret_name: ObjectName | None = None
    """Secret in the job's namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN). Unset: the
    pods' own identity (IRSA, workload identity)."""


class EmptyDirCache(ApiModel):
    """A cache that lives and dies with the pod."""

    size_limit: Quantity | None = None
    """Upper limit of its size, e.g. 200Gi."""


class Cache(ApiModel):
    """Where staged models are kept. Exactly one; an emptyDir when none is given."""

    persistent_volume_claim: ObjectName | None = None
    """Claim in the job's namespace; ReadWriteMany when nodes > 1."""
    host_path: Annotated[str, StringConstraints(pattern=r"^/[^.\s]*$", max_length=1024)] | None = None
    """Folder on the node, shared by all jobs. The operator's podPolicy must allow it."""
    empty_dir: EmptyDirCache | None = None
    """A folder of the pod's own."""
    max_size: Quantity | None = None
    """Upper limit of the staged files in it, e.g. 500Gi: what was not used for longest is removed to stay below, never what a
    running job uses. Unset: only when the disk is full."""

    @model_validator(mode="after")
    def check_one(self, info: ValidationInfo) -> Self:
        """At most one kind of volume."""
        given = [name for name in ("persistent_volume_claim", "host_path", "empty_dir") if getattr(self, name) is not None]
        if len(given) > 1:
            report([Contradiction(("cache",), f"cache: give one of {', '.join(given)}, not several")], info)
        return self


class DeepSpeed(ApiModel):
    """The DeepSpeed configuration: a preset, or one written out."""

    preset: DeepSpeedPreset | None = None
    """Configuration by name. zero2 when neither is given."""
    config: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None = None
    """A DeepSpeed configuration, as its own JSON file would hold it. Batch sizes, precision and clipping are filled in."""

    @model_validator(mode="after")
    def check_one(self, info: ValidationInfo) -> Self:
        """Not both."""
        if self.preset is not None and self.config is not None:
            report([Contradiction(("deepspeed",), f"deepspeed: give preset ({self.preset}) or config, not both")], info)
        return self

    def resolved(self) -> dict[str, Any]:
        """Return the configuration that is meant."""
        return self.config if self.config is not None else preset_config(self.preset or "zero2")


class RunPolicy(ApiModel):
    """Life of the job. The Kubernetes Job controller carries it out."""

    suspend: bool = False
    """Stop the pods and keep the job, or start it suspended. A running job writes a checkpoint first, within the pods' grace
    period (300 seconds; template.spec.terminationGracePeriodSeconds), and goes on from it."""
    backoff_limit: Annotated[int, Field(ge=0, le=1000)] = 3
    """Retries after a failure that may pass. Errors in configuration or data are never retried, disruptions not counted."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    """Seconds after which a running job is failed. Counted from its start, and anew after each suspension."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """Seconds after which the pods of a finished job are deleted. The RewardFLJob itself stays."""
    clean_pod_policy: Literal["None", "Running", "All"] = "Running"
    """Pods deleted when the job finishes. None is the same as Running: the Job controller always stops what still runs."""


class RewardFLJobSpec(ApiModel):
    """What a RewardFLJob asks for."""

    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    """Pods."""
    gpus_per_node: Annotated[int, Field(ge=0, le=MAX_PROCESSES_PER_NODE)] = 8
    """GPUs of each pod, one process each. 0 trains on CPU (gloo)."""
    processes_per_node: Annotated[int, Field(ge=1, le=MAX_PROCESSES_PER_NODE)] | None = None
    """Processes of each pod on CPU. Only with gpusPerNode: 0."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """Trainer image. Unset: the one that the operator was installed with."""
    storage: Storage = Field(default_factory=Storage)
    """Object storage."""
    dataset: SourceUri
    """Folder with metadata.csv (columns video, prompt) and the videos."""
    output: OutputUri
    """Folder in object storage that results are written to."""
    cache: Cache = Field(default_factory=Cache)
    """Where staged models are kept."""
    training: TrainingParameters
    """The training parameters."""
    deepspeed: DeepSpeed = Field(default_factory=DeepSpeed)
    """The DeepSpeed configuration."""
    guard: Guard | None = None
    """Rules by which the run ends, or is suspended, before its last step. Unset: it always makes every step."""
    run_policy: RunPolicy = Field(default_factory=RunPolicy)
    """Life of the job."""
    managed_by: ControllerName | None = None
    """Controller that looks after the job, e.g. kueue.x-k8s.io/multikueue. Another one than rewardfl.io/operator (also the
    default): the operator leaves the job alone. Never changed."""
    template: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None = None
    """Partial pod template (metadata, spec), merged into the operator's; containers by name: trainer and stage."""

    @model_validator(mode="after")
    def check_together(self, info: ValidationInfo) -> Self:
        """Check what needs several fields."""
        report([*self._processes_and_batch(), *contradictions(self.guard, self.training)], info)
        return self

    def _processes_and_batch(self) -> Iterator[Contradiction]:
        """There is one number of processes, and the batch is that of all of them."""
        if self.processes_per_node is not None and self.gpus_per_node > 0:
            yield Contradiction(
                ("processes_per_node", "gpus_per_node"),
                f"processesPerNode={self.processes_per_node}: only for CPU training; "
                f"with gpusPerNode={self.gpus_per_node} there is one process per GPU. Remove it or set gpusPerNode to 0",
            )
        batch = self.training
        product = batch.per_device_train_batch_size * batch.gradient_accumulation_steps * self.world_size
        if batch.train_batch_size not in (None, product):
            factors = ("train_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
            yield Contradiction(
                (*(f"training.{name}" for name in factors), "nodes", "gpus_per_node", "processes_per_node"),
                f"training.trainBatchSize={batch.train_batch_size}: must equal perDeviceTrainBatchSize "
                f"{batch.per_device_train_batch_size} * gradientAccumulationSteps {batch.gradient_accumulation_steps} * "
                f"world size {self.world_size} = {product}. Change one of them or leave trainBatchSize out",
            )

    @property
    def processes_of_a_node(self) -> int:
        """Processes that torchrun starts in each pod."""
        return self.gpus_per_node or self.processes_per_node or 1

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.nodes * self.processes_of_a_node
