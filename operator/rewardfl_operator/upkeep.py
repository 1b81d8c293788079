"""What is to be done about a Kubernetes Job that exists: nothing, a patch, or to make it anew. Pure.

`suspend` and the queue's labels belong to more than one: the user (by runPolicy.suspend), Kueue, whoever patches the Job by
hand. So what the operator last asked of them stands in an annotation of the Job, and it asks again only when its own wish has
changed: it never repeats itself, so it never fights. Most other fields of a Job cannot be changed; when the spec asks for
others, a new Job is made, which goes on from the last checkpoint (docs/decisions/0112-suspend-and-edits.md).
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rewardfl_api.job import RewardFLJob

from . import leaving, names, resources
from .observed import JobSeen

Raw = dict[str, Any]

NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Remove:
    """Delete the Job and wait until its pods are gone: they save a checkpoint. It is made anew if the spec wants it to run."""

    why: str


@dataclass(frozen=True)
class Patch:
    """Apply this merge patch."""

    body: Raw


def of_running(job: RewardFLJob, live: Raw, released_before: datetime = NEVER) -> Remove | Patch | None:
    """Return what is to be done about the live Job of a job whose result is not on record.

    One that was released before `released_before`, by an operator that was uninstalled then, is this operator's again.
    """
    if _has_ended(live):
        return None
    asked_before, labels = resources.Asked.of(live), names.queue_labels(job)
    suspend, is_suspended = job.spec.run_policy.suspend, _is_suspended(live)
    if _annotations(live).get(names.SHAPE_ANNOTATION) != resources.shape(job) and (is_suspended or _was_edited(job, live)):
        return Remove("the spec was changed")
    if suspend and (_is_queued(live) or names.QUEUE_LABEL in labels or (asked_before.suspend and not is_suspended)):
        # A queue would let it go on, and whoever has done so against what was asked would do so again.
        return Remove("runPolicy.suspend is true, and a queue decides about the Kubernetes Job's suspend")
    if is_suspended and not suspend and asked_before.labels.keys() - labels.keys():
        return Remove("a label of the queue was removed")
    return _patch(job, live, asked_before, leaving.given_back(live, released_before) or {})


def of_finished(job: RewardFLJob, live: Raw) -> Patch | None:
    """Return what is to be done about the Job of a job whose result is on record.

    The TTL is set only now: a Job that vanished before would be made, and train, again.
    """
    wanted = job.spec.run_policy.ttl_seconds_after_finished
    if live.get("spec", {}).get("ttlSecondsAfterFinished") == wanted:
        return None
    return Patch({"spec": {"ttlSecondsAfterFinished": wanted}})


def _patch(job: RewardFLJob, live: Raw, before: resources.Asked, given_back: Raw) -> Patch | None:
    """The patch that makes a wish known that has changed; None when none has, or none can be fulfilled now."""
    spec: Raw = {**given_back.get("spec", {})}
    annotations: Raw = {**given_back.get("metadata", {}).get("annotations", {})}
    deadline = job.spec.run_policy.active_deadline_seconds
    if live.get("spec", {}).get("activeDeadlineSeconds") != deadline:
        spec["activeDeadlineSeconds"] = deadline
    changed = _label_changes(names.queue_labels(job), before.labels, _is_suspended(live))
    is_queued = _is_queued(live) or names.QUEUE_LABEL in changed
    suspend = before.suspend if is_queued else job.spec.run_policy.suspend
    if suspend != before.suspend:
        spec["suspend"] = suspend
    now = resources.Asked(suspend, {**before.labels, **changed})
    if now != before:
        annotations[names.ASKED_ANNOTATION] = now.dump()
    metadata = _without_empty({"annotations": annotations, "labels": changed})
    body = _without_empty({"metadata": metadata, "spec": spec})
    return Patch(body) if body else None


def _without_empty(parts: Raw) -> Raw:
    return {key: value for key, value in parts.items() if value}


def _label_changes(wanted: dict[str, str], before: dict[str, str], is_suspended: bool) -> dict[str, str]:
    """What of the queue's labels may change now: Kueue moves only what waits, but takes another priority at any time."""
    changed = {key: value for key, value in wanted.items() if before.get(key) != value}
    if is_suspended:
        return changed
    return {key: value for key, value in changed.items() if key == names.PRIORITY_LABEL and key in before}


def _was_edited(job: RewardFLJob, live: Raw) -> bool:
    """Whether the user has edited the spec since the Job was made. A new version of the operator is no reason to stop a run."""
    made_from = _annotations(live).get(names.GENERATION_ANNOTATION, "")
    return made_from.isdigit() and int(made_from) < job.metadata.generation


def _has_ended(live: Raw) -> bool:
    """Whether the Job controller has decided how it ends: removed now, it would be made, and train, again."""
    seen = JobSeen.parse(live)
    return seen.has_succeeded or seen.failure is not None


def _is_queued(live: Raw) -> bool:
    return names.QUEUE_LABEL in _labels(live)


def _is_suspended(live: Raw) -> bool:
    return bool(live.get("spec", {}).get("suspend"))


def _labels(live: Raw) -> dict[str, str]:
    return live["metadata"].get("labels") or {}


def _annotations(live: Raw) -> dict[str, str]:
    return live["metadata"].get("annotations") or {}
