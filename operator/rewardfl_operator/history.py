"""What has failed so far: the attempts that a job has lost, the cause of each, and which of them were followed by another. Pure.

Pods are collected sooner or later, and the operator may be started again, so what was seen once is kept in the status; an
attempt is known again by its pod that failed first, or by the time at which it did.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from rewardfl_api.errors import LOG_TAIL_MAX_CHARACTERS, Reason
from rewardfl_api.status import RESTARTS_KEPT, Failure, Restart

from . import causes
from .causes import Cause
from .observed import Pod

LONGEST_RESTART_MESSAGE = 512
LONGEST_FAILURE_TEXT = 2048


@dataclass(frozen=True)
class LostAttempt:
    """Pods that trained together until one of them failed."""

    cause: Cause
    """Why the first of them failed."""
    pods: tuple[Pod, ...]

    @property
    def time(self) -> datetime:
        """When it was lost, in whole seconds."""
        told = self.cause.time if self.cause.time is not causes.NEVER else min(map(causes.failed_at, self.pods))
        return told.replace(microsecond=0)

    @property
    def counted(self) -> bool:
        """Whether the Job controller counts it against the limit of retries."""
        return any(causes.counts(pod) for pod in self.pods)

    def is_told_by(self, restart: Restart) -> bool:
        """Whether `restart` is the record of this attempt, perhaps of a pod of it that is gone by now."""
        if restart.pod in [pod.name for pod in self.pods]:
            return True
        return min(pod.created for pod in self.pods) <= restart.time <= max(map(causes.failed_at, self.pods))


def lost_attempts(pods: tuple[Pod, ...]) -> tuple[LostAttempt, ...]:
    """Return the attempts that have lost a pod, the oldest first.

    An attempt of which every pod was deleted and ended by that was stopped (a suspension, a deadline), and is not among them.
    """
    failed = sorted((pod for pod in pods if pod.phase == "Failed"), key=causes.failed_at)
    attempts: list[LostAttempt] = []
    while failed:
        first = causes.failed_at(failed[0])
        members = {failed[0].index: failed[0]}
        for pod in failed:
            if pod.created <= first:
                members.setdefault(pod.index, pod)
        failed = [pod for pod in failed if pod is not members.get(pod.index)]
        found = [cause for cause in map(causes.of_pod, members.values()) if cause is not None]
        if not all(map(_was_stopped, members.values())):
            attempts.append(LostAttempt(min(found, key=lambda cause: cause.order), tuple(members.values())))
    return tuple(attempts)


def restarts(pods: tuple[Pod, ...], backoff_limit: int, known: list[Restart], count: int) -> tuple[list[Restart], int]:
    """Return the newest restarts, the oldest first, and how many in all have counted against `backoff_limit`.

    An attempt goes on record as soon as it is lost, if it is tried again: its pods may be gone before others take their place.

    Args:
        pods: the pods that are there.
        backoff_limit: how many retries the Job controller makes.
        known: the restarts on record.
        count: how many have counted so far.
    """
    forgotten = known[0].time if len(known) >= RESTARTS_KEPT else None
    history = list(known)
    for attempt in lost_attempts(pods):
        is_old = any(attempt.is_told_by(record) for record in known) or (forgotten is not None and attempt.time <= forgotten)
        if not is_old and causes.is_retried(attempt.cause, pods, backoff_limit):
            history.append(_restart(attempt))
            count += attempt.counted
    return sorted(history, key=lambda record: record.time)[-RESTARTS_KEPT:], count


def last_failure(pods: tuple[Pod, ...], known: Failure | None) -> Failure | None:
    """Return the newest failure that is no mere disruption; the one on record when its pods are gone."""
    failures = [attempt for attempt in lost_attempts(pods) if attempt.cause.reason not in causes.CONSEQUENCES]
    if not failures or (known is not None and known.time > failures[-1].time):
        return known
    return failure_of(failures[-1].cause, failures[-1].time)


def failure_of(cause: Cause, time: datetime) -> Failure:
    """Return `cause` as the status tells it."""
    code = cause.exit_code
    in_range = code is not None and 0 <= code <= causes.LARGEST_EXIT_CODE
    return Failure(
        time=time.astimezone(UTC).replace(microsecond=0),
        reason=cause.reason.value,
        message=cause.message[:LONGEST_FAILURE_TEXT],
        hint=cause.remedy[:LONGEST_FAILURE_TEXT],
        pod=cause.pod,
        container=cause.container,
        rank=cause.rank,
        exit_code=code if in_range else None,
        log_tail=cause.log_tail[-LOG_TAIL_MAX_CHARACTERS:],
    )


def _restart(attempt: LostAttempt) -> Restart:
    told = failure_of(attempt.cause, attempt.time)
    return Restart(
        time=told.time,
        reason=told.reason,
        message=told.message[:LONGEST_RESTART_MESSAGE],
        pod=told.pod,
        exit_code=told.exit_code,
        counted=attempt.counted,
    )


def _was_stopped(pod: Pod) -> bool:
    """Whether somebody deleted the pod, and it ended because of that: a suspension, or `kubectl delete pod`."""
    cause = causes.of_pod(pod)
    return pod.deleting and cause is not None and cause.reason is Reason.TERMINATED
