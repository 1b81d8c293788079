"""What becomes of the Kubernetes Jobs of gangs when the operator is uninstalled, and when it is there again. Pure.

The Job controller keeps the last failed pod of each index until it has made another, which it may not in a namespace that is
being deleted; an operator that is there deletes the Job then. So before it goes, each gang's plain `backoffLimit` is lowered to
the failures that it has had: the next one, such as the end of its namespace, ends the Job and lets go of its pods. The limit
that was there before stands in an annotation, and is given back (docs/decisions/0108-namespaces-that-end.md).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from . import names
from .observed import ENDED_POD_PHASES, JobSeen, Pod
from .resources import Asked

Raw = dict[str, Any]

TRACKING_FINALIZER = "batch.kubernetes.io/job-tracking"
UNINSTALLED_WITHIN = timedelta(minutes=10)
"""An operator that still works so long after its Jobs were released has not been uninstalled."""


@dataclass(frozen=True)
class Lower:
    """Lower the limit of failures.

    Attributes:
        limit: what it becomes.
        suffices: whether the Job's namespace can end from now on, whatever its pods do.
    """

    limit: int
    suffices: bool


@dataclass(frozen=True)
class Remove:
    """Delete the Job: it is suspended, and the operator makes it anew when it is resumed."""


@dataclass(frozen=True)
class Wait:
    """The gang is about to start again. As soon as it is whole its limit can be lowered without ending it."""


@dataclass(frozen=True)
class Released:
    """What the annotation of a Job says whose limit was lowered.

    Attributes:
        limit: what it was lowered to.
        before: what it was.
        time: when.
    """

    limit: int
    before: int
    time: datetime

    def dump(self) -> str:
        """Return the annotation's text."""
        return json.dumps({"limit": self.limit, "before": self.before, "time": self.time.isoformat()})

    @classmethod
    def of(cls, live: Raw) -> "Released | None":
        """Read it from a Job; None when that was not released, or the annotation is not ours."""
        try:
            read = json.loads((live["metadata"].get("annotations") or {})[names.RELEASED_ANNOTATION])
            released = cls(int(read["limit"]), int(read["before"]), datetime.fromisoformat(read["time"]))
        except (ValueError, KeyError, TypeError):
            return None
        return released if released.time.tzinfo is not None else None


def decide(live: Raw, pods: Iterable[Raw], patient: bool) -> Lower | Remove | Wait | None:
    """Return what is to be done about a Job before the operator goes; None when nothing is.

    Args:
        live: the Job.
        pods: its pods.
        patient: whether a gang that starts again may be waited for.
    """
    spec, seen = live["spec"], JobSeen.parse(live)
    if spec.get("backoffLimitPerIndex") is None or seen.deleting or seen.has_succeeded or seen.failure is not None:
        return None
    held = [pod for pod in pods if TRACKING_FINALIZER in pod["metadata"].get("finalizers", [])]
    failures = _failures(live, held)
    if not any(map(_is_lost, held)):
        return _lower(spec, failures, suffices=True)
    if seen.suspended and Asked.of(live).suspend:
        return Remove()
    if patient and not seen.suspended:
        return Wait()
    # A pod that waits for another in its place has to be let go: the Job ends now, if it has ever failed.
    mortal = any(map(_will_count, held))
    return _lower(spec, max(failures - 1, 0), suffices=failures > 0 or mortal)


def released(live: Raw, lower: Lower, now: datetime) -> Raw:
    """Return the merge patch that lowers the limit. It fits only the Job that was looked at: the count may have changed since."""
    note = Released(lower.limit, int(live["spec"]["backoffLimit"]), now)
    metadata = {
        "resourceVersion": live["metadata"]["resourceVersion"],
        "annotations": {names.RELEASED_ANNOTATION: note.dump()},
    }
    return {"metadata": metadata, "spec": {"backoffLimit": lower.limit}}


def released_before(started: datetime, now: datetime) -> datetime:
    """Return the time before which a release is over for an operator that was started at `started`.

    Whoever was there already is the one that is being uninstalled, unless it still works when that should have been done.
    """
    return max(started, now - UNINSTALLED_WITHIN)


def given_back(live: Raw, before: datetime) -> Raw | None:
    """Return the merge patch that undoes a release of earlier than `before`; None when there is none.

    A limit that somebody has changed since stays as it is.
    """
    note = Released.of(live)
    if note is None or note.time >= before:
        return None
    untouched = live["spec"].get("backoffLimit") == note.limit
    spec = {"spec": {"backoffLimit": note.before}} if untouched else {}
    return {"metadata": {"annotations": {names.RELEASED_ANNOTATION: None}}, **spec}


def _lower(spec: Raw, limit: int, *, suffices: bool) -> Lower | None:
    return Lower(limit, suffices) if int(spec["backoffLimit"]) > limit else None


def _failures(live: Raw, held: list[Raw]) -> int:
    """Count the failures as the Job controller compares them with the limit: also those that are not in its status yet."""
    status = live.get("status") or {}
    uncounted = (status.get("uncountedTerminatedPods") or {}).get("failed") or []
    failed = [pod.uid for pod in map(Pod.parse, held) if pod.phase == "Failed" and not pod.is_disrupted]
    return int(status.get("failed") or 0) + len({*uncounted, *failed})


def _is_lost(raw: Raw) -> bool:
    """Whether a pod has failed or is about to end, so that another has to take its place."""
    pod = Pod.parse(raw)
    return pod.phase == "Failed" or (pod.phase not in ENDED_POD_PHASES and (pod.is_disrupted or pod.deleting))


def _will_count(raw: Raw) -> bool:
    """Whether a pod has not ended, and will be counted as a failure when its namespace takes it along."""
    pod = Pod.parse(raw)
    return pod.phase not in ENDED_POD_PHASES and not pod.is_disrupted
