"""The status of a job as a function of what is seen: its children, its last progress report, its last status and the clock.

Pure: it asks nobody and writes nothing. A finished job's status is kept as it is, whatever becomes of its children.
"""

from datetime import datetime
from typing import Literal

from rewardfl_api.errors import Reason
from rewardfl_api.job import RewardFLJob
from rewardfl_api.progress import Progress
from rewardfl_api.status import FINISHED_PHASES, Condition, ConditionType, Failure, Restart, RewardFLJobStatus, Workers

from . import causes, figures, history, trips
from .causes import Cause
from .figures import Staleness
from .observed import Children
from .situation import REASON_OF_PHASE, RUNNING_PHASES, Situation, assess, has_ended, is_fresh
from .trips import Told


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
    fresh = progress if progress is not None and is_fresh(progress, children) else None
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
    status = figures.with_progress(status, progress if is_news or situation.phase in FINISHED_PHASES else fresh)
    status = status.model_copy(update={"guard_suspended_for": trips.suspended_for(job, progress, previous)})
    stale, guard = figures.staleness(status, children, now), trips.of_job(job, progress, fresh, status, previous)
    situation = trips.explained(situation, guard)
    return status.model_copy(update={"conditions": _conditions(job, situation, stale, guard, previous, now)})


def look_again(status: RewardFLJobStatus, children: Children, now: datetime) -> float | None:
    """Return in how many seconds the status changes though nothing else does; None when it does not."""
    times = [since + causes.READY_PATIENCE for pod in children.live_pods if (since := causes.unready_since(pod)) is not None]
    if status.phase == "Training" and status.last_progress_time is not None:
        times.append(status.last_progress_time + figures.longest_silence(status))
    seconds = [(time - now).total_seconds() + 1.0 for time in times if time >= now]
    return min(seconds, default=None)


def refused(job_generation: int, reason: Reason, message: str, previous: RewardFLJobStatus, now: datetime) -> RewardFLJobStatus:
    """Return the status of a resource that cannot be carried out as it is written. It heals when the resource is edited."""
    accepted = _condition("Accepted", False, reason, message, job_generation, previous, now)
    failed = _condition("Failed", True, reason, message, job_generation, previous, now)
    return previous.model_copy(
        update={"phase": "Failed", "observed_generation": job_generation, "conditions": [accepted, failed], "eta": None}
    )


def _restarts(job: RewardFLJob, children: Children, previous: RewardFLJobStatus) -> tuple[list[Restart], int]:
    """The record of restarts. What is over or held is not started again, however its pods have ended."""
    if has_ended(children.job):
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


def _conditions(
    job: RewardFLJob,
    now_is: Situation,
    stale: Staleness | None,
    guard: Told | None,
    previous: RewardFLJobStatus,
    now: datetime,
) -> list[Condition]:
    """One condition of each type that says something, in a fixed order."""
    generation, phase = job.metadata.generation, now_is.phase
    runs = phase in RUNNING_PHASES and now_is.reason is REASON_OF_PHASE.get(phase)
    staged = runs or phase == "Succeeded" or (phase == "Failed" and _held_before("Staged", previous))
    ended = phase in FINISHED_PHASES
    held = phase in ("Suspended", "Queued")
    rows: list[tuple[ConditionType, bool, Reason, str]] = [
        ("Accepted", True, Reason.ACCEPTED, "The resource is valid."),
        ("Staged", staged, Reason.COMPLETED if staged else now_is.reason, ""),
        ("Running", runs, now_is.reason, "" if ended else now_is.message),
    ]
    if held or any(item.type == "Suspended" for item in previous.conditions):
        rows.append(("Suspended", held, now_is.reason, now_is.message if held else ""))
    if stale is not None:
        rows.append(("ProgressStale", stale.reason is not Reason.PROGRESS_CURRENT, stale.reason, stale.message))
    if guard is not None:
        rows.append(("GuardTripped", guard.holds, guard.reason, guard.message))
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
