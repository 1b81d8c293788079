"""Which Kubernetes events a change of status is worth, and how they are written. Pure.

The name of an event of a new phase is made from the status that it follows upon: there is exactly one for each change, also when
the operator is killed between it and the status it belongs to and repeats itself in other words. The name of any other event is
made from what it says, so saying it again updates it instead of adding one: no storms.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from rewardfl_api.errors import Reason
from rewardfl_api.job import API_VERSION, KIND, RewardFLJob
from rewardfl_api.status import Condition, RewardFLJobStatus

from . import trips
from .names import FIELD_MANAGER, MANAGED_BY_LABEL
from .reading import Problem

LONGEST_NOTE = 1000
"""The API server refuses an event whose message has more than 1024 bytes."""

WORTH_A_WARNING = (
    Reason.UNSCHEDULABLE,
    Reason.IMAGE_PULL_FAILED,
    Reason.SECRET_MISSING,
    Reason.VOLUME_MISSING,
    Reason.QUOTA_EXCEEDED,
    Reason.ADMISSION_REFUSED,
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
    follows: str = ""
    """What it follows upon, if that and not the note is what makes it one of its own."""


def of_change(before: RewardFLJobStatus, after: RewardFLJobStatus) -> Iterator[Event]:
    """Yield the events of a change of status: one for a new phase, one for each new trouble."""
    old, new = _running(before), _running(after)
    if after.phase != before.phase and after.phase is not None:
        failed = after.phase == "Failed"
        told = _find(after, "Failed") if failed else new
        follows = before.model_dump_json()
        yield Event("Warning" if failed else "Normal", after.phase, _note(told), follows)
    if (
        new is not None
        and new.reason in WORTH_A_WARNING
        and (old is None or (old.reason, old.message) != (new.reason, new.message))
    ):
        yield Event("Warning", new.reason, new.message)
    tripped = trips.newly_tripped(before, after)
    if tripped is not None:
        yield Event("Warning", tripped.reason, tripped.message)
    stale = _find(after, "ProgressStale")
    if stale is not None and stale.reason == Reason.TRAINER_SILENT and _reason(before, "ProgressStale") != stale.reason:
        yield Event("Warning", stale.reason, stale.message)


def of_problem(problem: Problem) -> Event:
    """Return the event for a progress document that is ignored."""
    return Event("Warning", PROGRESS_IGNORED, f"Ignored: {problem.value}.")


def manifest(event: Event, job: RewardFLJob, now: datetime) -> dict[str, Any]:
    """Return `event` as Kubernetes stores it."""
    metadata = job.metadata
    identity = f"{metadata.uid}/{event.kind}/{event.reason}/{event.follows or event.note}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
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


def _reason(status: RewardFLJobStatus, kind: str) -> str | None:
    condition = _find(status, kind)
    return condition.reason if condition is not None else None


def _find(status: RewardFLJobStatus, kind: str) -> Condition | None:
    return next((condition for condition in status.conditions if condition.type == kind), None)


def _note(condition: Condition | None) -> str:
    if condition is None:
        return ""
    return f"{condition.reason}: {condition.message}" if condition.type == "Failed" else condition.message
