"""Turns the lines of a run into series of numbers: picked, smoothed, thinned out. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewardfl_api.metrics import StepMetrics

from .data import RunData

MAX_POINTS = 800
"""Of a series; more cannot be told apart on a screen."""

SMOOTHED_SHARE = 0.05
"""Part of a series that its running mean is taken over."""

SECONDS = "seconds_"
PARTS = ("prepare", "sample", "reference", "decode", "reward", "backward", "optimise")
"""Parts of a step, in the order in which they happen."""

HELD_OUT = "held_out_"
HELD_OUT_REWARD = f"{HELD_OUT}reward"


@dataclass(frozen=True)
class Series:
    """Values by step; none of them is missing."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        """Whether there is a value."""
        return bool(self.values)

    def since(self, step: int) -> "Series":
        """Return what comes after a step."""
        kept = [(at, value) for at, value in zip(self.steps, self.values, strict=True) if at > step]
        return Series([at for at, _ in kept], [value for _, value in kept])

    def smoothed(self) -> "Series":
        """Return the running mean, over a window that ends at each value."""
        width = max(1, round(len(self.values) * SMOOTHED_SHARE))
        sums = [0.0]
        for value in self.values:
            sums.append(sums[-1] + value)
        means = [(sums[end] - sums[max(0, end - width)]) / min(end, width) for end in range(1, len(sums))]
        return Series(self.steps, means)

    def thinned(self) -> "Series":
        """Return at most MAX_POINTS, each the mean of its neighbours."""
        if len(self.values) <= MAX_POINTS:
            return self
        size = math.ceil(len(self.values) / MAX_POINTS)
        groups = [range(begin, min(begin + size, len(self.values))) for begin in range(0, len(self.values), size)]
        return Series([self.steps[group[-1]] for group in groups], [mean(self.values[at] for at in group) for group in groups])

    def begin(self, share: float) -> float:
        """Return the mean of the first part."""
        return mean(self.values[: max(1, round(len(self.values) * share))])

    def end(self, share: float) -> float:
        """Return the mean of the last part."""
        return mean(self.values[-max(1, round(len(self.values) * share)) :])


@dataclass(frozen=True)
class Spread:
    """A mean and what it spreads over, by step."""

    steps: list[int]
    means: list[float]
    lowest: list[float]
    highest: list[float]
    noises: int
    """How many noises it spreads over; with one there is no spread."""


def series(lines: Iterable[StepMetrics], name: str) -> Series:
    """Return what was logged under a name."""
    found = [(line.step, value) for line in lines if (value := line.values.get(name)) is not None]
    return Series([step for step, _ in found], [value for _, value in found])


def held_out(run: RunData) -> Spread:
    """Return the held-out reward with its spread over the noises: that of the mean over all rows."""
    reward = series(run.lines, HELD_OUT_REWARD)
    by_step = {evaluation.step: list(evaluation.by_noise().values()) for evaluation in run.evaluations}
    means = dict(zip(reward.steps, reward.values, strict=True))
    ranges = [by_step.get(step, [means[step]]) for step in reward.steps]
    return Spread(
        reward.steps,
        reward.values,
        [min(values) for values in ranges],
        [max(values) for values in ranges],
        max((len(values) for values in ranges), default=0),
    )


def parts(lines: Sequence[StepMetrics]) -> dict[str, Series]:
    """Return the seconds of a step by part, in the order of a step; of parts that were measured."""
    return {name: found for name in PARTS if (found := series(lines, SECONDS + name))}


def mean(values: Iterable[float]) -> float:
    """Return the mean of at least one value."""
    numbers = list(values)
    return sum(numbers) / len(numbers)
