"""The figures of the status: the trainer's last report, what it makes for people, and whether it is still true. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rewardfl_api.errors import Reason
from rewardfl_api.progress import Progress, Results, StagingProgress
from rewardfl_api.reasons import EXPLANATIONS
from rewardfl_api.status import FINISHED_PHASES, RewardFLJobStatus

from .observed import Children

SECONDS_PER_MINUTE, SECONDS_PER_HOUR, SECONDS_PER_DAY = 60, 3600, 86400
SILENCE_STEPS = 10
SHORTEST_SILENCE, LONGEST_FIRST_STEP, LONGEST_SILENCE = timedelta(minutes=10), timedelta(hours=1), timedelta(days=1)
"""A trainer reports after every step, and steps take from milliseconds to many minutes; evaluations and checkpoints come in
between. Silence is worth a word after so many steps, and not before the first of these times; the second is for a first step,
whose duration nobody knows yet; the third bounds what a pod can claim."""


@dataclass(frozen=True)
class Staleness:
    """Whether the figures are those of now, in one word and in one sentence."""

    reason: Reason
    message: str


CURRENT = Staleness(Reason.PROGRESS_CURRENT, "")


def with_progress(status: RewardFLJobStatus, progress: Progress | None) -> RewardFLJobStatus:
    """Fold a report into the status. Without one, what was reached stays and only the forecast goes."""
    training = status.phase == "Training"
    update: dict[str, object] = {"eta": None}
    if progress is not None:
        update["last_progress_time"] = progress.time
        update |= {"checkpoint": progress.checkpoint or status.checkpoint, "results": _results(progress, status)}
        update["staging"] = progress.staging or status.staging
        if progress.total_steps:
            update |= {"step": progress.step, "total_steps": progress.total_steps}
            update["progress"] = f"{progress.step}/{progress.total_steps}"
            update |= _metrics(progress, status)
        seconds = _seconds_to_stage(progress.staging) if status.phase == "Staging" else progress.eta_seconds if training else None
        update["eta"] = duration(seconds) if seconds is not None else None
    status = status.model_copy(update=update)
    return status.model_copy(update={"percent": _percent(status)})


def _results(progress: Progress, status: RewardFLJobStatus) -> Results | None:
    """Where the results are: what is known stays until something else is told of it."""
    if progress.results is None or status.results is None:
        return progress.results or status.results
    return status.results.model_copy(update={name: value for name, value in progress.results if value is not None})


def _metrics(progress: Progress, status: RewardFLJobStatus) -> dict[str, object]:
    """The latest metrics, and of them the one for people. An attempt that has made no step yet has none."""
    if not progress.metrics.model_dump(exclude_none=True):
        return {"metrics": None, "reward": None}
    reward = progress.metrics.reward
    return {"metrics": progress.metrics, "reward": f"{reward:.3f}" if reward is not None else status.reward}


def _seconds_to_stage(staging: StagingProgress | None) -> float | None:
    """Seconds until everything is staged at the rate of the last seconds; None while nothing comes, or all is there."""
    if staging is None or staging.bytes_per_second < 1 or staging.bytes_done >= staging.bytes_total:
        return None
    return (staging.bytes_total - staging.bytes_done) / staging.bytes_per_second


def _percent(status: RewardFLJobStatus) -> int | None:
    """Percent of the bytes while staging, of the steps afterwards."""
    if status.phase == "Staging" and status.staging is not None and status.staging.bytes_total:
        return min(100 * status.staging.bytes_done // status.staging.bytes_total, 100)
    if status.phase == "Staging" or not status.total_steps:
        return None
    return min(100 * (status.step or 0) // status.total_steps, 100)


def duration(seconds: float) -> str:
    """Write a duration for people, with its two largest units: 45s, 12m30s, 1h12m, 2d3h."""
    total = round(seconds)
    days, hours = divmod(total, SECONDS_PER_DAY)
    hours, minutes = divmod(hours, SECONDS_PER_HOUR)
    minutes, rest = divmod(minutes, SECONDS_PER_MINUTE)
    parts = [(days, "d"), (hours, "h"), (minutes, "m"), (rest, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return "".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"


def staleness(status: RewardFLJobStatus, children: Children, now: datetime) -> Staleness | None:
    """Say whether the figures in the status are those of now; None while there are none."""
    last, writer = status.last_progress_time, children.current.get(0)
    if last is None:
        return None
    if status.phase in FINISHED_PHASES:
        return CURRENT
    if writer is None:
        return Staleness(Reason.EARLIER_ATTEMPT, "Pod 0 is not there; the figures are the last that it reported.")
    if last < writer.created:
        text = "The pods were started again; the figures are those of the attempt before."
        return Staleness(Reason.EARLIER_ATTEMPT, text)
    if status.phase == "Training" and now - last > longest_silence(status):
        text = f"The trainer has not reported since {last:%Y-%m-%d %H:%M:%S} UTC, though its pods run."
        return Staleness(Reason.TRAINER_SILENT, f"{text} {EXPLANATIONS[Reason.TRAINER_SILENT].remedy}")
    return CURRENT


def longest_silence(status: RewardFLJobStatus) -> timedelta:
    """For how long a trainer that is well may say nothing."""
    step = status.metrics.seconds_per_step if status.metrics is not None else None
    if step is None or not status.step:
        return LONGEST_FIRST_STEP
    seconds = min(SILENCE_STEPS * max(step, 0.0), LONGEST_SILENCE.total_seconds())
    return max(SHORTEST_SILENCE, timedelta(seconds=seconds))
