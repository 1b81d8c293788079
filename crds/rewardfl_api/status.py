"""The status of a RewardFLJob: what is going on and, when something is wrong, what and how to mend it."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from .base import ApiModel
from .errors import LARGEST_RANK, LOG_TAIL_MAX_CHARACTERS
from .progress import Checkpoint, Metrics, Results, StagingProgress, Step

Phase = Literal["Pending", "Queued", "Suspended", "Staging", "Preparing", "Training", "Saving", "Succeeded", "Failed"]
FINISHED_PHASES = ("Succeeded", "Failed")

ConditionType = Literal["Accepted", "Staged", "Running", "Suspended", "ProgressStale", "GuardTripped", "Succeeded", "Failed"]

RESTARTS_KEPT = 10
"""How many restarts the status remembers; the oldest are forgotten first."""

PodName = Annotated[str, Field(max_length=253)]
ReasonName = Annotated[str, Field(max_length=64)]
ProcessExitCode = Annotated[int, Field(ge=0, le=255)]


class Condition(ApiModel):
    """A standard Kubernetes condition."""

    type: Annotated[str, Field(max_length=316)]
    """What the condition is about: Accepted, Staged, Running, Suspended, ProgressStale, GuardTripped, Succeeded or Failed."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024)]
    """One word from the closed list of docs/operations.md."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """What happened and what to do."""
    last_transition_time: AwareDatetime
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the resource that this was derived from."""


class Workers(ApiModel):
    """The job's pods, counted."""

    active: Annotated[int, Field(ge=0)] = 0
    """Pods that run or wait to run."""
    succeeded: Annotated[int, Field(ge=0)] = 0
    """Pods that ended well."""
    failed: Annotated[int, Field(ge=0)] = 0
    """Pods that failed."""


class Failure(ApiModel):
    """The last failure: the first rank, or container, that failed in it. Disruptions are no failures."""

    time: AwareDatetime
    """When it failed."""
    reason: ReasonName
    """One word from the closed list of docs/operations.md."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """What happened."""
    hint: Annotated[str, Field(max_length=2048)] = ""
    """What to do."""
    pod: PodName = ""
    """The pod that failed."""
    container: Annotated[str, Field(max_length=63)] = ""
    """Its container: stage or trainer."""
    rank: Annotated[int, Field(ge=0, le=LARGEST_RANK)] | None = None
    """The rank that failed first, where it was one."""
    exit_code: ProcessExitCode | None = None
    """Exit code of the container."""
    log_tail: Annotated[str, Field(max_length=LOG_TAIL_MAX_CHARACTERS)] = ""
    """The last lines that it logged, secrets masked. Empty where nothing was left, as when the whole pod was killed."""


class Restart(ApiModel):
    """One time that the pods were started again."""

    time: AwareDatetime
    """When the attempt before it failed."""
    reason: ReasonName
    """Why, in one word from the closed list of docs/operations.md."""
    message: Annotated[str, Field(max_length=512)] = ""
    """Why, in a sentence."""
    pod: PodName = ""
    """The pod that failed first."""
    exit_code: ProcessExitCode | None = None
    """Exit code of its container."""
    counted: bool
    """Whether it counts against runPolicy.backoffLimit; a disruption (eviction, preemption, lost node) does not."""


class RewardFLJobStatus(ApiModel):
    """What is observed of a RewardFLJob."""

    phase: Phase | None = None
    """Where the job stands."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the resource that this status was derived from."""
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
    """Conditions, one of each type."""
    start_time: AwareDatetime | None = None
    """When the first pod was started."""
    completion_time: AwareDatetime | None = None
    """When the job succeeded or failed."""
    step: Step | None = None
    """Optimizer steps done."""
    total_steps: Step | None = None
    """Optimizer steps in all."""
    progress: Annotated[str, Field(max_length=32)] | None = None
    """Steps done and in all, for people: 12/40."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """Percent of the steps (of the bytes, while staging)."""
    eta: Annotated[str, Field(max_length=32)] | None = None
    """Time until training ends (until the models are fetched, while staging), for people: 1h12m."""
    metrics: Metrics | None = None
    """The latest metrics."""
    reward: Annotated[str, Field(max_length=32)] | None = None
    """The latest mean face score, for people: 0.612."""
    staging: StagingProgress | None = None
    """Bytes staged."""
    checkpoint: Checkpoint | None = None
    """The last save of the trained weights."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """Times that pods were started again after a failure. Disruptions are not counted."""
    restart_history: Annotated[list[Restart], Field(max_length=RESTARTS_KEPT)] = Field(default_factory=list)
    """The newest restarts with the cause of each, the oldest first; disruptions included."""
    failure: Failure | None = None
    """The last failure, whether or not the pods were started again after it."""
    workers: Workers | None = None
    """The pods, counted."""
    results: Results | None = None
    """Where the results are."""
    last_progress_time: AwareDatetime | None = None
    """When the trainer last reported."""
    guard_suspended_for: AwareDatetime | None = None
    """When the rule was broken for which the guard suspended the job last: it does that once for each."""

    def to_kubernetes(self) -> dict[str, Any]:
        """Return the JSON form, without objects that say nothing.

        Where a server-side apply empties an object, the API server makes null of it, and then refuses that.
        """
        return {key: value for key, value in super().to_kubernetes().items() if value != {}}
