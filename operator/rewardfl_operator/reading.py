"""Reads the progress document. It comes from a pod that may be broken or hijacked, so nothing in it is believed unchecked.

A document that is refused changes nothing: the job's status keeps what it last knew, and an event says why.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from rewardfl_api.progress import PROGRESS_MAX_BYTES, Progress, StagingProgress
from rewardfl_api.status import RewardFLJobStatus

CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a node's clock may be ahead of the operator's."""


NODE_CLOCK_TOLERANCE = timedelta(seconds=5)
"""How far the clocks of two nodes may be apart, when a pod is started again on another."""


class Problem(StrEnum):
    """Why a document is ignored. The texts hold nothing of the document, so that it cannot make an event for every value."""

    TOO_LONG = f"the progress document is longer than {PROGRESS_MAX_BYTES} bytes"
    MALFORMED = "the progress document is malformed, or holds a number that is not finite or out of range"
    FUTURE = "the progress document is dated in the future; check the clock of the node that runs pod 0"
    BACKWARDS = "the progress document goes backwards in time or in steps, though pod 0 was not restarted"
    BEYOND_TOTAL = "the progress document reports more steps, bytes or files than there are"


@dataclass(frozen=True)
class Reading:
    """A progress document that can be believed, or the reason why not. Neither, when nothing was reported yet."""

    progress: Progress | None = None
    problem: Problem | None = None


def read(text: str | None, previous: RewardFLJobStatus, writer_started: datetime | None, now: datetime) -> Reading:
    """Read the document `text`.

    Args:
        text: the document; None when there is none yet.
        previous: the status as it was last written.
        writer_started: when the container that writes it was started; None when it is not known.
        now: the operator's clock.
    """
    if not text:
        return Reading()
    if len(text.encode("utf-8", "surrogatepass")) > PROGRESS_MAX_BYTES:
        return Reading(problem=Problem.TOO_LONG)
    try:
        progress = Progress.model_validate_json(text)
        progress = progress.model_copy(update={"time": progress.time.astimezone(UTC)})
    except (ValueError, OverflowError):  # the latter: a time so early that it cannot be brought to another zone
        return Reading(problem=Problem.MALFORMED)
    problem = _disbelieve(progress, previous, writer_started, now)
    return Reading(progress) if problem is None else Reading(problem=problem)


def _disbelieve(
    progress: Progress, previous: RewardFLJobStatus, writer_started: datetime | None, now: datetime
) -> Problem | None:
    """Return what cannot be true in a well-formed document."""
    if progress.time > now + CLOCK_TOLERANCE:
        return Problem.FUTURE
    if (progress.total_steps and progress.step > progress.total_steps) or _stages_too_much(progress.staging):
        return Problem.BEYOND_TOTAL
    return Problem.BACKWARDS if _goes_backwards(progress, previous, writer_started) else None


def _stages_too_much(staging: StagingProgress | None) -> bool:
    """Whether more is staged than there is. Fewer bytes than before are no mistake: a damaged file is fetched again."""
    if staging is None:
        return False
    pairs = [
        (staging.bytes_done, staging.bytes_total),
        (staging.bytes_cached, staging.bytes_done),
        (staging.files_done, staging.files_total),
        (staging.files_cached, staging.files_done),
        *((file.bytes_done, file.bytes_total) for file in staging.files),
    ]
    return any(part > whole for part, whole in pairs)


def _goes_backwards(progress: Progress, previous: RewardFLJobStatus, writer_started: datetime | None) -> bool:
    """Whether this cannot follow upon what was last reported. A restart goes on from a checkpoint, so its steps may."""
    last = previous.last_progress_time
    if last is None:
        return False
    if progress.time < last:
        return True
    restarted = writer_started is not None and writer_started >= last - NODE_CLOCK_TOLERANCE
    return not restarted and progress.step < (previous.step or 0)


def believable(previous: RewardFLJobStatus, now: datetime) -> RewardFLJobStatus:
    """Return a status as it was found, without what lies in the future: it was damaged, and nothing could follow upon that."""
    latest = now + CLOCK_TOLERANCE
    reported, failure = previous.last_progress_time, previous.failure
    return previous.model_copy(
        update={
            "last_progress_time": reported if reported is None or reported <= latest else None,
            "failure": failure if failure is None or failure.time <= latest else None,
            "restart_history": [record for record in previous.restart_history if record.time <= latest],
        }
    )
