"""The status of a job as a function of what is seen: its children, its last progress report, its last status and the clock.

Pure: it asks nobody and writes nothing. A finished job's status is kept as it is, whatever becomes of its children.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob
from rewardfl_api.printable import printable
from rewardfl_api.progress import Progress, StagingProgress
from rewardfl_api.reasons import EXPLANATIONS
from rewardfl_api.status import FINISHED_PHASES, Condition, ConditionType, Failure, Phase, Restart, RewardFLJobStatus, Workers

from . import causes, history
from .causes import Cause
from .observed import Children, JobSeen, Pod

SECONDS_PER_MINUTE, SECONDS_PER_HOUR, SECONDS_PER_DAY = 60, 3600, 86400
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

SILENCE_STEPS = 10
SHORTEST_SILENCE, LONGEST_FIRST_STEP = timedelta(minutes=10), timedelta(hours=1)
"""A trainer reports after every step, and steps take from milliseconds to many minutes; evaluations and checkpoints come in
between. Silence is worth a word after so many steps, and not before these times: the second is for a first step, whose
duration nobody knows yet."""


@dataclass(frozen=True)
class Situation:
    """Where a job stands, in one word and in one sentence."""

    phase: Phase
    reason: Reason
    message: str


def is_final(status: RewardFLJobStatus) -> bool:
    """Whether the job has ended. A refused spec is `Failed` as well, but heals when it is edited, so it is not final."""
    refused = any(item.type == "Accepted" and item.status == "False" for item in status.conditions)
    return status.phase in FINISHED_PHASES and not refused


def derive(
    job: RewardFLJob,
    children: Children,
    progress: Progress | None,
    previous: RewardFLJobStatus,
    now: datetime,
    obstacle: Cause | None = None,
) -> RewardFLJobStatus:
    """Return the status of a job whose spec is valid.

    Args:
        job: the resource.
        children: what is seen of its Kubernetes Job and pods.
        progress: the trainer's last believable report; None when there is none.
        previous: the status as it was last written; empty for a new job.
        now: the operator's clock.
        obstacle: why objects or pods that ought to be there cannot be made; None when nothing is known to be in their way.
    """
    if is_final(previous):
        return previous
    fresh = progress if progress is not None and _is_fresh(progress, children) else None
    situation = assess(job, children, fresh, previous, now, obstacle)
    records, count = _restarts(job, children, previous)
    status = previous.model_copy(
        update={
            "phase": situation.phase,
            "observed_generation": job.metadata.generation,
            "start_time": (children.job and children.job.started) or previous.start_time,
            "completion_time": _completion_time(children, now) if situation.phase in FINISHED_PHASES else None,
            "workers": _workers(children),
            "restarts": count,
            "restart_history": records,
            "failure": _failure(children, situation, previous),
        }
    )
    # What pods reported last counts also when they are gone: the checkpoint that they wrote when they were told to stop.
    is_news = progress is not None and (previous.last_progress_time is None or progress.time > previous.last_progress_time)
    status = _with_progress(status, progress if is_news or situation.phase in FINISHED_PHASES else fresh)
    stale = _staleness(status, children, now)
    return status.model_copy(update={"conditions": _conditions(job, situation, stale, previous, now)})


def look_again(status: RewardFLJobStatus, children: Children, now: datetime) -> float | None:
    """Return in how many seconds the status changes though nothing else does; None when it does not."""
    times = [since + causes.READY_PATIENCE for pod in children.live_pods if (since := causes.unready_since(pod)) is not None]
    if status.phase == "Training" and status.last_progress_time is not None:
        times.append(status.last_progress_time + _longest_silence(status))
    seconds = [(time - now).total_seconds() + 1.0 for time in times if time >= now]
    return min(seconds, default=None)


def refused(job_generation: int, reason: Reason, message: str, previous: RewardFLJobStatus, now: datetime) -> RewardFLJobStatus:
    """Return the status of a resource that cannot be carried out as it is written. It heals when the resource is edited."""
    accepted = _condition("Accepted", False, reason, message, job_generation, previous, now)
    failed = _condition("Failed", True, reason, message, job_generation, previous, now)
    return previous.model_copy(
        update={"phase": "Failed", "observed_generation": job_generation, "conditions": [accepted, failed], "eta": None}
    )


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
    if obstacle is not None and not suspend and (seen is None or len(children.current) < job.spec.nodes) and not _has_ended(seen):
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


def _has_ended(seen: JobSeen | None) -> bool:
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


def _is_fresh(progress: Progress, children: Children) -> bool:
    """Whether a report comes from the pod that does rank 0's work now, and not from one before it."""
    writer = children.current.get(0)
    return writer is not None and (started := writer_started(writer)) is not None and progress.time >= started


def writer_started(pod: Pod | None) -> datetime | None:
    """When the container that reports was started; None while none has."""
    if pod is None:
        return None
    return pod.trainer.started or pod.stage.started


def _restarts(job: RewardFLJob, children: Children, previous: RewardFLJobStatus) -> tuple[list[Restart], int]:
    """The record of restarts. What is over or held is not started again, however its pods have ended."""
    if _has_ended(children.job):
        return previous.restart_history, previous.restarts
    limit = job.spec.run_policy.backoff_limit
    return history.restarts(children.pods, limit, previous.restart_history, previous.restarts)


def _failure(children: Children, situation: Situation, previous: RewardFLJobStatus) -> Failure | None:
    """The last failure of a pod; once the job has failed, what its condition says."""
    last = history.last_failure(children.pods, previous.failure)
    failed = children.job.failure if children.job is not None else None
    if situation.phase != "Failed" or failed is None:
        return last
    cause = causes.of_job(failed, children.pods)
    told = history.failure_of(cause, cause.time if cause.time is not causes.NEVER else failed.time or causes.NEVER)
    return last if last is not None and (last.reason, last.message) == (told.reason, told.message) else told


def _staleness(status: RewardFLJobStatus, children: Children, now: datetime) -> Situation | None:
    """Say whether the figures in the status are those of now; None while there are none."""
    phase, last = status.phase or "Pending", status.last_progress_time
    if last is None:
        return None
    if phase in FINISHED_PHASES:
        return Situation(phase, Reason.PROGRESS_CURRENT, "")
    writer = children.current.get(0)
    if writer is None or last < writer.created:
        return Situation(
            phase, Reason.EARLIER_ATTEMPT, "The pods were started again; the figures are those of the attempt before."
        )
    if phase == "Training" and now - last > _longest_silence(status):
        text = f"The trainer has not reported since {last:%Y-%m-%d %H:%M:%S} UTC, though its pods run."
        return Situation(phase, Reason.TRAINER_SILENT, f"{text} {EXPLANATIONS[Reason.TRAINER_SILENT].remedy}")
    return Situation(phase, Reason.PROGRESS_CURRENT, "")


def _longest_silence(status: RewardFLJobStatus) -> timedelta:
    """For how long a trainer that is well may say nothing."""
    step = status.metrics.seconds_per_step if status.metrics is not None else None
    if step is None or not status.step:
        return LONGEST_FIRST_STEP
    return max(SHORTEST_SILENCE, timedelta(seconds=SILENCE_STEPS * max(step, 0.0)))


def _conditions(
    job: RewardFLJob, now_is: Situation, stale: Situation | None, previous: RewardFLJobStatus, now: datetime
) -> list[Condition]:
    """One condition of each type that says something, in a fixed order."""
    generation, phase = job.metadata.generation, now_is.phase
    runs = phase in RUNNING_PHASES and now_is.reason is REASON_OF_PHASE.get(phase)
    staged = runs or phase == "Succeeded" or (phase == "Failed" and _held_before("Staged", previous))
    ended = phase in FINISHED_PHASES
    held = phase in ("Suspended", "Queued")
    rows: list[tuple[ConditionType, bool, Reason, str]] = [
        ("Accepted", True, Reason.ACCEPTED, "The resource is valid and its objects were made."),
        ("Staged", staged, Reason.COMPLETED if staged else now_is.reason, ""),
        ("Running", runs, now_is.reason, "" if ended else now_is.message),
    ]
    if held or any(item.type == "Suspended" for item in previous.conditions):
        rows.append(("Suspended", held, now_is.reason, now_is.message if held else ""))
    if stale is not None:
        rows.append(("ProgressStale", stale.reason is not Reason.PROGRESS_CURRENT, stale.reason, stale.message))
    if ended:
        rows.append(("Succeeded" if phase == "Succeeded" else "Failed", True, now_is.reason, now_is.message))
    return [_condition(kind, holds, reason, message, generation, previous, now) for kind, holds, reason, message in rows]


def _condition(
    kind: str, holds: bool, reason: Reason, message: str, generation: int, previous: RewardFLJobStatus, now: datetime
) -> Condition:
    """Make a condition; its transition time is kept for as long as it holds or does not hold."""
    old = next((item for item in previous.conditions if item.type == kind), None)
    status: Literal["True", "False"] = "True" if holds else "False"
    changed = now.replace(microsecond=0) if old is None or old.status != status else old.last_transition_time
    return Condition(
        type=kind,
        status=status,
        reason=reason.value,
        message=message,
        last_transition_time=changed,
        observed_generation=generation,
    )


def _held_before(kind: str, previous: RewardFLJobStatus) -> bool:
    return any(item.type == kind and item.status == "True" for item in previous.conditions)


def _workers(children: Children) -> Workers | None:
    job = children.job
    return None if job is None else Workers(active=job.active, succeeded=job.succeeded, failed=job.failed)


def _completion_time(children: Children, now: datetime) -> datetime:
    """When the Job controller says that the job ended."""
    job = children.job
    if job is None:
        return now.replace(microsecond=0)
    decided = job.failure.time if job.failure is not None else None
    return job.completed or decided or now.replace(microsecond=0)


def _with_progress(status: RewardFLJobStatus, progress: Progress | None) -> RewardFLJobStatus:
    """Fold a report into the status. Without one, what was reached stays and only the forecast goes."""
    training = status.phase == "Training"
    update: dict[str, object] = {"eta": None}
    if progress is not None:
        update["last_progress_time"] = progress.time
        update |= {"checkpoint": progress.checkpoint or status.checkpoint, "results": progress.results or status.results}
        update["staging"] = progress.staging or status.staging
        if progress.total_steps:
            update |= {"step": progress.step, "total_steps": progress.total_steps}
            update["progress"] = f"{progress.step}/{progress.total_steps}"
            update |= _metrics(progress, status)
        seconds = _seconds_to_stage(progress.staging) if status.phase == "Staging" else progress.eta_seconds if training else None
        update["eta"] = duration(seconds) if seconds is not None else None
    status = status.model_copy(update=update)
    return status.model_copy(update={"percent": _percent(status)})


def _metrics(progress: Progress, status: RewardFLJobStatus) -> dict[str, object]:
    """The latest metrics, and of them the one for people. An attempt that has made no step yet has none."""
    if not progress.metrics.model_dump(exclude_none=True):
        return {"metrics": None, "reward": None}
    reward = progress.metrics.reward
    return {"metrics": progress.metrics, "reward": f"{reward:.3f}" if reward is not None else status.reward}


def _seconds_to_stage(staging: StagingProgress | None) -> float | None:
    """Seconds until everything is staged at the rate of the last seconds; None while nothing comes, or all is there."""
    if staging is None or staging.bytes_per_second <= 0 or staging.bytes_done >= staging.bytes_total:
        return None
    return (staging.bytes_total - staging.bytes_done) / staging.bytes_per_second


def _percent(status: RewardFLJobStatus) -> int | None:
    """Percent of the bytes while staging, of the steps afterwards."""
    if status.phase == "Staging" and status.staging is not None and status.staging.bytes_total:
        return min(100 * status.staging.bytes_done // status.staging.bytes_total, 100)
    if status.phase == "Staging" or not status.total_steps:
        return None
    return min(100 * (status.step or 0) // status.total_steps, 100)


def duration(seconds: float) -> str:
    """Write a duration for people, with its two largest units: 45s, 12m30s, 1h12m, 2d3h."""
    total = round(seconds)
    days, hours = divmod(total, SECONDS_PER_DAY)
    hours, minutes = divmod(hours, SECONDS_PER_HOUR)
    minutes, rest = divmod(minutes, SECONDS_PER_MINUTE)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"
