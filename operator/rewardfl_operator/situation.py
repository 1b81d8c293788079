"""Where a job stands, in one word and in one sentence: from its Kubernetes Job, its pods and what rank 0 says of itself. Pure."""

from dataclasses import dataclass
from datetime import datetime

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob
from rewardfl_api.printable import printable
from rewardfl_api.progress import Progress
from rewardfl_api.status import Phase, RewardFLJobStatus

from . import causes
from .causes import Cause
from .observed import Children, JobSeen, Pod

REASON_OF_PHASE: dict[Phase, Reason] = {
    "Pending": Reason.PODS_PENDING,
    "Queued": Reason.QUEUED,
    "Suspended": Reason.SUSPENDED,
    "Staging": Reason.STAGING,
    "Preparing": Reason.PREPARING,
    "Training": Reason.TRAINING,
    "Saving": Reason.SAVING,
    "Succeeded": Reason.COMPLETED,
}
RUNNING_PHASES = ("Preparing", "Training", "Saving")


@dataclass(frozen=True)
class Situation:
    """Where a job stands, in one word and in one sentence."""

    phase: Phase
    reason: Reason
    message: str


def assess(
    job: RewardFLJob,
    children: Children,
    fresh: Progress | None,
    previous: RewardFLJobStatus,
    now: datetime,
    obstacle: Cause | None = None,
) -> Situation:
    """Say where the job stands. `fresh` is the report of the pods that run now."""
    seen = children.job
    suspend = job.spec.run_policy.suspend
    if obstacle is not None and not suspend and (seen is None or len(children.current) < job.spec.nodes) and not has_ended(seen):
        return Situation("Pending", obstacle.reason, obstacle.text)
    if seen is None or seen.deleting:
        made = Situation("Pending", Reason.PODS_PENDING, "The pods are being made.")
        return _held(job, children) if suspend else made
    if seen.has_succeeded:
        return Situation("Succeeded", Reason.COMPLETED, "Training ended; the results are in the output folder.")
    if seen.failure is not None:
        cause = causes.of_job(seen.failure, children.pods)
        return Situation("Failed", cause.reason, cause.text)
    if seen.suspended:
        return _held(job, children)
    waiting = causes.of_waiting(children.live_pods, now)
    return _underway(job, children, fresh, previous) if waiting is None else Situation("Pending", waiting.reason, waiting.text)


def has_ended(seen: JobSeen | None) -> bool:
    """Whether the Kubernetes Job is over, or held, so that none of its pods is to run."""
    return seen is not None and (seen.has_succeeded or seen.failure is not None or seen.suspended)


def _held(job: RewardFLJob, children: Children) -> Situation:
    """Say who holds a job that is not to run now: the user, its queue, or somebody else who suspended the Kubernetes Job."""
    saving = f" {children.ending_pods} pods are saving a checkpoint and end." if children.ending_pods else ""
    if job.spec.run_policy.suspend:
        return Situation("Suspended", Reason.SUSPENDED, f"runPolicy.suspend is true; set it to false to go on.{saving}")
    queue = children.job.queue if children.job is not None else ""
    if queue or children.held_by is not None:
        where = f"Waiting to be admitted by the queue {queue}." if queue else "Waiting to be admitted by Kueue."
        return Situation("Queued", Reason.QUEUED, f"{where} {children.held_by or ''}".strip() + saving)
    told = "The Kubernetes Job was suspended by somebody else, who can let it go on."
    return Situation("Suspended", Reason.SUSPENDED, told + saving)


def _underway(job: RewardFLJob, children: Children, fresh: Progress | None, previous: RewardFLJobStatus) -> Situation:
    """Say how far the pods are; what made them start again comes first."""
    phase = _phase_of_pods(job, children, fresh)
    lost = causes.last_failure(children.pods)
    if lost is not None and phase not in ("Training", "Saving") and _is_replacing(job, children, lost[1]):
        cause = lost[0]
        if not causes.is_retried(cause, children.pods, job.spec.run_policy.backoff_limit):
            # The Job controller is about to say so as well; until then nothing starts again.
            return Situation(previous.phase or phase, cause.reason, cause.text)
        reason = Reason.DISRUPTED if cause.reason is Reason.DISRUPTED else Reason.RESTARTING
        return Situation(phase, reason, f"Starting again after {cause.reason.value}: {cause.text}")
    message = printable(fresh.message) if fresh is not None and fresh.message else _message(phase, job, children)
    return Situation(phase, REASON_OF_PHASE[phase], message)


def _phase_of_pods(job: RewardFLJob, children: Children, fresh: Progress | None) -> Phase:
    """The phase by the containers that run, and once all have staged by what rank 0 says."""
    current = children.current
    if len(current) < job.spec.nodes or not any(pod.stage.has_started for pod in current.values()):
        return "Pending"
    if not all(pod.trainer.has_started for pod in current.values()):
        return "Staging"
    return fresh.phase if fresh is not None and fresh.phase != "Staging" else "Preparing"


def _is_replacing(job: RewardFLJob, children: Children, lost: datetime) -> bool:
    """Whether the gang is not yet whole again since it lost a pod: one is missing, or one is newer than the loss."""
    current = children.current
    return len(current) < job.spec.nodes or any(pod.created >= lost for pod in current.values())


def _message(phase: Phase, job: RewardFLJob, children: Children) -> str:
    current = children.current
    if phase == "Pending":
        return f"{len(current)} of {job.spec.nodes} pods made, waiting for them to start."
    done = sum(pod.trainer.has_started for pod in current.values())
    if phase == "Staging":
        return f"Fetching models and dataset; {done} of {job.spec.nodes} pods are done."
    return "Loading models and checking the dataset." if phase == "Preparing" else f"{phase}."


def is_fresh(progress: Progress, children: Children) -> bool:
    """Whether a report comes from the pod that does rank 0's work now, and not from one before it."""
    writer = children.current.get(0)
    return writer is not None and (started := writer_started(writer)) is not None and progress.time >= started


def writer_started(pod: Pod | None) -> datetime | None:
    """When the container that reports was started; None while none has."""
    if pod is None:
        return None
    return pod.trainer.started or pod.stage.started
