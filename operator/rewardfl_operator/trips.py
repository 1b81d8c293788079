"""What follows when the trainer reports that a rule of spec.guard is broken: a condition, and the wish to suspend the job. Pure.

A job that asks to be suspended is suspended once for each broken rule, by the field that its user has for that; an annotation
says for which. Whether and when it goes on is the user's, or the queue's, and never undone here
(docs/decisions/0143-who-suspends-a-guarded-job.md).
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, get_args

from rewardfl_api.errors import Reason
from rewardfl_api.guard import GuardReason, GuardTrip
from rewardfl_api.job import RewardFLJob
from rewardfl_api.progress import Progress
from rewardfl_api.reasons import EXPLANATIONS
from rewardfl_api.status import Condition, RewardFLJobStatus

from .names import TRIP_ANNOTATION
from .situation import Situation

CONDITION = "GuardTripped"
TRIPS = get_args(GuardReason)


@dataclass(frozen=True)
class Told:
    """The guard's condition."""

    holds: bool
    reason: Reason
    message: str


def of_job(
    job: RewardFLJob, progress: Progress | None, fresh: Progress | None, status: RewardFLJobStatus, previous: RewardFLJobStatus
) -> Told | None:
    """Return what to say of the guard; None where there is none.

    Args:
        job: the resource.
        progress: the last report, perhaps of pods that are gone.
        fresh: the same if pods that run now have written it.
        status: the status with the figures of that report.
        previous: the status as it was last written.
    """
    if job.spec.guard is None:
        return None
    before, trip = _condition(previous), reported(job, progress)
    if trip is None:
        trains_on = fresh is not None and fresh.phase == "Training"
        if before is not None and before.status == "True" and before.reason in TRIPS and not trains_on:
            return Told(True, Reason(before.reason), before.message)  # pods that start have said nothing yet
        return Told(False, Reason.GUARD_ARMED, "")
    if _is_handled(job, trip, status) and not (job.spec.run_policy.suspend and before is not None and before.status == "True"):
        return Told(False, Reason.GUARD_ARMED, f"Let go on after step {trip.step}, where it was suspended: {trip.message}")
    return Told(True, trip.reason, _message(job, trip, status))


def explained(situation: Situation, told: Told | None) -> Situation:
    """Return where a job stands that its guard has ended or suspended, with that as the reason."""
    if told is None or not told.holds or situation.phase not in ("Succeeded", "Suspended"):
        return situation
    if situation.phase == "Succeeded":
        return replace(situation, reason=told.reason, message=told.message)
    return replace(situation, reason=told.reason, message=f"{told.message} Set runPolicy.suspend to false to go on.")


def suspension(job: RewardFLJob, progress: Progress | None, status: RewardFLJobStatus) -> dict[str, Any] | None:
    """Return the patch of the RewardFLJob that suspends it; None when nobody asks for that, or it has been done."""
    trip = reported(job, progress)
    if trip is None or trip.action != "Suspend" or job.spec.guard is None or job.spec.guard.action != "Suspend":
        return None
    if _is_handled(job, trip, status):
        return None
    metadata = {"uid": job.metadata.uid, "annotations": {TRIP_ANNOTATION: trip.time.isoformat()}}
    return {"metadata": metadata, "spec": {"runPolicy": {"suspend": True}}}


def reported(job: RewardFLJob, progress: Progress | None) -> GuardTrip | None:
    """Return the broken rule that the trainer reports. A suspension that another job of this output asked for is none of ours."""
    trip = progress.guard if progress is not None and job.spec.guard is not None else None
    created = job.metadata.creation_timestamp
    if trip is not None and trip.action == "Suspend" and created is not None and trip.time < created:
        return None
    return trip


def newly_tripped(before: RewardFLJobStatus, after: RewardFLJobStatus) -> Condition | None:
    """Return the guard's condition where it holds now and did not, or for another reason, before."""
    old, new = _condition(before), _condition(after)
    if new is None or new.status != "True":
        return None
    return None if old is not None and (old.status, old.reason) == ("True", new.reason) else new


def suspended_for(job: RewardFLJob, progress: Progress | None, previous: RewardFLJobStatus) -> datetime | None:
    """Return the time of the broken rule that the job was suspended for last.

    The annotation says so first; `kubectl replace` takes annotations away, and leaves the status alone.
    """
    trip = reported(job, progress)
    if trip is not None and job.metadata.annotations.get(TRIP_ANNOTATION) == trip.time.isoformat():
        return trip.time
    return previous.guard_suspended_for


def _is_handled(job: RewardFLJob, trip: GuardTrip, status: RewardFLJobStatus) -> bool:
    """Whether the job was suspended for this."""
    if trip.action != "Suspend":
        return False
    return status.guard_suspended_for == trip.time or job.metadata.annotations.get(TRIP_ANNOTATION) == trip.time.isoformat()


def _condition(status: RewardFLJobStatus) -> Condition | None:
    return next((item for item in status.conditions if item.type == CONDITION), None)


def _message(job: RewardFLJob, trip: GuardTrip, status: RewardFLJobStatus) -> str:
    """What happened, what is left, and what to try."""
    of_all = f" of {status.total_steps}" if status.total_steps else ""
    stopped = trip.action == "Stop" or status.phase == "Succeeded"  # nobody has suspended it, so it has ended
    done = "stopped" if stopped else "suspended" if job.spec.run_policy.suspend else "is suspending"
    best = status.results.best_checkpoint if status.results is not None else None
    kept = f" The best checkpoint is {best.uri}, with a held-out reward of {best.score:.4f}." if best is not None else ""
    return f"The guard {done} the job after step {trip.step}{of_all}. {trip.message}{kept} {EXPLANATIONS[trip.reason].remedy}"
