"""Which Kubernetes events a change of status is worth, and how they are written. Pure.

An event's name is made from what it says, so saying it again updates it instead of adding one: no storms, and an operator that
is killed between an event and the status it belongs to repeats itself without harm.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rewardfl_api.errors import Reason
from rewardfl_api.job import API_VERSION, KIND, RewardFLJob
from rewardfl_api.status import Condition, RewardFLJobStatus

from .names import FIELD_MANAGER, MANAGED_BY_LABEL
from .reading import Problem

LONGEST_NOTE = 1000
"""The API server refuses an event whose message has more than 1024 bytes."""

WORTH_A_WARNING = (
    Reason.UNSCHEDULABLE,
    Reason.IMAGE_PULL_FAILED,
    Reason.SECRET_MISSING,
    Reason.VOLUME_MISSING,
    Reason.RESTARTING,
    Reason.DISRUPTED,
)
PROGRESS_IGNORED = "ProgressIgnored"
GANG_RESTARTED = "GangRestarted"


@dataclass(frozen=True)
class Event:
    """Something to tell whoever runs `kubectl describe`."""

    kind: Literal["Normal", "Warning"]
    reason: str
    note: str


def of_change(before: RewardFLJobStatus, after: RewardFLJobStatus) -> Iterator[Event]:
    """Yield the events of a change of status: one for a new phase, one for a new trouble."""
    old, new = _running(before), _running(after)
    if after.phase != before.phase and after.phase is not None:
        failed = after.phase == "Failed"
        told = _find(after, "Failed") if failed else new
        yield Event("Warning" if failed else "Normal", after.phase, _note(told))
    if (
        new is not None
        and new.reason in WORTH_A_WARNING
        and (old is None or (old.reason, old.message) != (new.reason, new.message))
    ):
        yield Event("Warning", new.reason, new.message)


def of_problem(problem: Problem) -> Event:
    """Return the event for a progress document that is ignored."""
    return Event("Warning", PROGRESS_IGNORED, f"Ignored: {problem.value}.")


def manifest(event: Event, job: RewardFLJob, now: datetime) -> dict[str, Any]:
    """Return `event` as Kubernetes stores it."""
    metadata = job.metadata
    digest = hashlib.sha256(f"{metadata.uid}/{event.kind}/{event.reason}/{event.note}".encode()).hexdigest()[:16]
    time = now.replace(microsecond=0).isoformat().replace("+00:00", "Z")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata.name}.{digest}",
            "namespace": metadata.namespace,
            "labels": {MANAGED_BY_LABEL: FIELD_MANAGER},
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
        },
        "type": event.kind,
        "reason": event.reason,
        "message": event.note.encode()[:LONGEST_NOTE].decode("utf-8", "ignore"),
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
    }


def _running(status: RewardFLJobStatus) -> Condition | None:
    return _find(status, "Running")


def _find(status: RewardFLJobStatus, kind: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == kind), None)


def _note(condition: Condition | None) -> str:
    if condition is None:
        return ""
    return f"{condition.reason}: {condition.message}" if condition.type == "Failed" else condition.message
