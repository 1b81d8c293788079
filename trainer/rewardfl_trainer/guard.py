"""Decides whether a run has broken a rule of its guard, from what it has measured so far. Pure: numbers in, a verdict out.

What it needs of the past is a `Memory`, which is part of every checkpoint: a run that goes on comes to the same verdict at the
same step as one that was never interrupted. docs/guard.md has the formulas, and says what they cannot see.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from rewardfl_api.base import ApiModel
from rewardfl_api.errors import Reason
from rewardfl_api.guard import LONGEST_WINDOW, Guard, GuardReason, GuardTrip

ERRORS = 2
"""A fall counts from so many standard errors on. With one, every second run that stays where it is would be called worse one day:
its best evaluation is its luckiest (docs/guard.md has figures)."""

Window = Annotated[list[float], Field(max_length=LONGEST_WINDOW)]


class Mean(ApiModel):
    """The mean of numbers that come one by one."""

    total: float = 0.0
    """Their sum."""
    count: Annotated[int, Field(ge=0)] = 0
    """How many there were."""

    def with_(self, other: "Mean") -> "Mean":
        """Return the mean of both groups of numbers."""
        return Mean(total=self.total + other.total, count=self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; NaN of no numbers."""
        return self.total / self.count if self.count else math.nan


class Evaluated(ApiModel):
    """A measurement of the held-out reward."""

    step: Annotated[int, Field(ge=0)]
    """Optimizer steps that were done."""
    reward: float
    """The held-out reward."""
    parts: list[float]
    """What it is the mean of: the score of each row; with one row, that of each noise."""


class Memory(ApiModel):
    """What the guard remembers of a run."""

    rules: Guard | None = None
    """Those that it was made under."""
    kl: Window = Field(default_factory=list)
    """The KL of the last steps, as many as the rule looks at."""
    no_face: Window = Field(default_factory=list)
    """The same of the share of frames without a face."""
    best: Evaluated | None = None
    """The best evaluation, that before training included; of equals the earliest."""
    worse: Annotated[int, Field(ge=0)] = 0
    """Evaluations in a row, the last ones, that were worse than it."""
    at_best: Mean = Field(default_factory=Mean)
    """The training reward of the steps between the best evaluation and the one before; where there were none, the first steps
    after it."""
    since_best: Mean = Field(default_factory=Mean)
    """The training reward of the evaluated steps after those."""
    latest: Mean = Field(default_factory=Mean)
    """The training reward of the steps since the last evaluation."""
    trip: GuardTrip | None = None
    """Which rule was broken last."""


@dataclass(frozen=True)
class Verdict:
    """That a rule is broken."""

    reason: GuardReason
    message: str
    """Which bound, and the value."""


def after_step(memory: Memory, values: Mapping[str, float]) -> Memory:
    """Return the memory with the metrics of another optimizer step. What is absent or not finite says nothing."""
    rules = memory.rules
    kl_steps = rules.kl.steps if rules is not None and rules.kl is not None else 0
    face_steps = rules.no_face.steps if rules is not None and rules.no_face is not None else 0
    reward = values.get("reward", math.nan)
    latest = memory.latest.with_(Mean(total=reward, count=1)) if math.isfinite(reward) else memory.latest
    return memory.model_copy(
        update={
            "kl": _window(memory.kl, values.get("kl"), kl_steps),
            "no_face": _window(memory.no_face, values.get("no_face_fraction"), face_steps),
            "latest": latest,
        }
    )


def after_evaluation(memory: Memory, now: Evaluated) -> Memory:
    """Return the memory with another evaluation, made after the steps that it holds. One that is not finite says nothing."""
    if not math.isfinite(now.reward):
        return memory
    best = memory.best
    if best is None or len(best.parts) != len(now.parts) or now.reward > best.reward:  # other rows are another beginning
        return memory.model_copy(
            update={"best": now, "worse": 0, "at_best": memory.latest, "since_best": Mean(), "latest": Mean()}
        )
    lost, error = fall(best.parts, now.parts)
    least = memory.rules.held_out.min_delta if memory.rules is not None and memory.rules.held_out is not None else 0.0
    worse = memory.worse + 1 if lost > max(ERRORS * error, least) else 0
    first = memory.at_best.count == 0
    means = {"at_best": memory.latest} if first else {"since_best": memory.since_best.with_(memory.latest)}
    return memory.model_copy(update={"worse": worse, "latest": Mean(), **means})


def fall(best: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """Return the mean of what each part has lost, and the standard error of that mean; 0 for a single part.

    Rows differ much more from each other than one of them changes: differences row by row show a fall that means would hide.
    """
    lost = [before - after for before, after in zip(best, now, strict=True)]
    error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
    return statistics.fmean(lost), error


def verdict_on_steps(memory: Memory) -> Verdict | None:
    """Return which rule over single steps is broken: a whole window's mean is above its bound."""
    rules = memory.rules
    if rules is None:
        return None
    if (kl := rules.kl) is not None and len(memory.kl) == kl.steps and (mean := statistics.fmean(memory.kl)) > kl.max:
        text = f"The KL to the untrained model was {mean:.4g} as a mean over {_last(kl.steps)}, above guard.kl.max={kl.max:g}."
        return Verdict(Reason.KL_TOO_HIGH, text)
    face = rules.no_face
    if face is not None and len(memory.no_face) == face.steps and (mean := statistics.fmean(memory.no_face)) > face.max_fraction:
        text = (
            f"{mean:.0%} of the generated frames showed no face as a mean over {_last(face.steps)}, above "
            f"guard.noFace.maxFraction={face.max_fraction:g}."
        )
        return Verdict(Reason.FACES_VANISHED, text)
    return None


def verdict_on_evaluations(memory: Memory, now: Evaluated) -> Verdict | None:
    """Return whether the held-out reward has fallen while the training reward rose; `now` is the evaluation made last."""
    rule = memory.rules.held_out if memory.rules is not None else None
    best, before, since = memory.best, memory.at_best.value, memory.since_best.value
    if rule is None or best is None or memory.worse < rule.patience or not since > before:
        return None
    lost, error = fall(best.parts, now.parts)
    sure = f" (by {lost:.4f}, standard error {error:.4f})" if len(now.parts) > 1 else ""
    evaluations = "evaluation was" if memory.worse == 1 else f"{memory.worse} evaluations were"
    text = (
        f"The last {evaluations} worse than the best one: the held-out reward was {best.reward:.4f} at step {best.step} and is "
        f"{now.reward:.4f}{sure}, while the training reward rose from {before:.4f} to {since:.4f}; "
        f"guard.heldOut.patience={rule.patience}."
    )
    return Verdict(Reason.HELD_OUT_REWARD_FELL, text)


def tripped(memory: Memory, trip: GuardTrip) -> Memory:
    """Return the memory of a run whose rule was broken. What goes on from here counts anew, and does not trip at once."""
    return rearmed(memory, memory.rules).model_copy(update={"trip": trip})


def rearmed(memory: Memory, rules: Guard | None) -> Memory:
    """Return the memory under (other) rules: windows and counts begin anew, and what was tripped is forgotten.

    The best evaluation stays, and with it what the training reward was then.
    """
    return memory.model_copy(update={"rules": rules, "kl": [], "no_face": [], "worse": 0, "trip": None})


def _window(values: list[float], value: float | None, length: int) -> list[float]:
    """Return the last `length` values, the given one among them if it is a number."""
    found = values if value is None or not math.isfinite(value) else [*values, value]
    return found[-length:] if length else []


def _last(steps: int) -> str:
    return "the last step" if steps == 1 else f"the last {steps} steps"
