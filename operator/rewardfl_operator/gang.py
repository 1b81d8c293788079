"""What happens to one pod of a gang happens to all: which pods have to be started again because another was lost.

Ranks that lost a peer end by themselves when a collective notices; one that hangs elsewhere would keep its node, and the
rendezvous of the dead attempt, for as long as it likes. So the operator evicts the survivors of an attempt. An evicted pod
gets SIGTERM and a grace period, and the Job controller does not count it (docs/decisions/0060-gang.md). Pure.
"""

from dataclasses import dataclass
from datetime import datetime

from rewardfl_api.errors import FINAL_EXIT_CODES
from rewardfl_api.progress import Progress

from .causes import failed_at
from .observed import Children, Pod

BROKEN_GANG_GRACE_SECONDS = 30
"""Grace of a survivor whose peer has died: a checkpoint needs all ranks, so there is nothing to save."""


@dataclass(frozen=True)
class Eviction:
    """A pod to evict. Without a grace period of its own it gets the pod's: all ranks together can write a checkpoint."""

    pod: str
    grace_seconds: int | None


def evictions(children: Children, report: Progress | None = None) -> tuple[Eviction, ...]:
    """Return the pods that take part in an attempt which has lost a member. Empty when the job is over or suspended.

    Args:
        children: what is seen of the job's pods.
        report: the trainer's last believable report: one of training shows that the pods had met.
    """
    job = children.job
    if job is None or job.suspended or job.deleting or job.has_succeeded or job.failure is not None:
        return ()
    left_behind = {pod.name: BROKEN_GANG_GRACE_SECONDS for pod in children.live_pods if _was_left_behind(pod, children, report)}
    graces: dict[str, int | None] = {**left_behind, **_survivors(children)}
    return tuple(Eviction(name, grace) for name, grace in graces.items())


def _survivors(children: Children) -> dict[str, int | None]:
    """Return the pods whose peer is seen to have ended, and the grace period of each."""
    lost = [(time, pod) for pod in children.pods if (time := _lost_at(pod)) is not None]
    if not lost:
        return {}
    last = max(time for time, _ in lost)
    died = any(not pod.is_disrupted for time, pod in lost if time == last)
    grace = BROKEN_GANG_GRACE_SECONDS if died else None
    return {pod.name: grace for pod in children.live_pods if _took_part(pod, last) and not pod.is_disrupted}


def _lost_at(pod: Pod) -> datetime | None:
    """When the gang lost `pod`; None when it has not, or when the pod had not joined it yet, or when the job ends anyway."""
    if not pod.trainer.has_started or pod.trainer.exit_code in (0, *FINAL_EXIT_CODES):
        return None
    if pod.phase == "Failed" or pod.is_disrupted:
        return failed_at(pod)
    return None


def _took_part(pod: Pod, lost: datetime) -> bool:
    """Whether `pod` was training when a member was lost. Kubernetes' times are whole seconds, so equal ones count."""
    trainer = pod.trainer
    return trainer.started is not None and trainer.exit_code is None and trainer.started <= lost


def _was_left_behind(pod: Pod, children: Children, report: Progress | None) -> bool:
    """Whether `pod` has trained with a member that is gone without a trace, and was replaced: while the operator was down.

    A report of training that is newer than the replacement is one of the gang that it belongs to.
    """
    started = pod.trainer.started
    if started is None or pod.is_disrupted or report is None or report.phase == "Staging":
        return False
    return any(started < report.time < other.created for other in children.current.values())
