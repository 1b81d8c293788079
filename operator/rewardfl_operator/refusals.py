"""What is said about a resource that cannot be carried out, and the little that can still be known of it. Pure."""

from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from rewardfl_api.job import ObjectMeta, RewardFLJob

from .observed import owner_uid

Raw = dict[str, Any]

LONGEST_VALUE = 100
MAX_ERRORS = 10


class NameTaken(Exception):
    """An object that the operator has to make exists already and belongs to somebody else."""

    def __init__(self, what: str) -> None:
        super().__init__(f"metadata.name: the {what} exists already and is not this job's; rename the job, or that object")


class Blocked(Exception):
    """An object of an earlier job of the same name still stands; it is gone in a moment."""


def require_ours(what: str, live: Raw, job: RewardFLJob) -> None:
    """Tell an object that is about to be collected from one that a person made.

    Raises:
        Blocked: it belongs to an earlier job of this name.
        NameTaken: it belongs to somebody else.
    """
    if owner_uid(live) == job.metadata.uid:
        return
    owner = (live["metadata"].get("ownerReferences") or [{}])[0]
    if owner.get("kind") == job.kind and owner.get("name") == job.metadata.name:
        raise Blocked(f"waiting for the {what} of an earlier job of this name to be removed")
    raise NameTaken(what)


def render(error: ValidationError) -> str:
    """Return pydantic's errors as the user wrote the fields: `training.numFrames=80: ...`, one after the other."""
    lines = [_line(item) for item in error.errors()[:MAX_ERRORS]]
    more = error.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def _line(item: Any) -> str:
    path = ".".join(_step(step) for step in item["loc"] if step != "spec")
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        # Such a message was written by this project, and names the field and the value itself.
        return str(text)
    value = "" if item["type"] == "missing" else f"={str(item['input'])[:LONGEST_VALUE]}"
    return f"{path}{value}: {text}"


def _step(step: str | int) -> str:
    return to_camel(step) if isinstance(step, str) and "_" in step else str(step)


def stub(body: Raw) -> RewardFLJob:
    """Return a job of which only the metadata can be relied upon, for the events and the status of a refused one."""
    unknown: Any = None
    return RewardFLJob.model_construct(metadata=ObjectMeta.model_validate(body["metadata"]), spec=unknown)
