"""Says in words what the numbers of a run mean, and what to try. Pure: decided by numbers alone, each rule by itself.

The bounds are chosen so that a run that goes well is told nothing but that. docs/report.md lists the rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from rewardfl_api.reasons import EXPLANATIONS

from .curves import HELD_OUT, SECONDS, Series, held_out, parts, series
from .data import RunData
from .times import Times

Level = Literal["good", "note", "warning"]

SMALL = 0.01
"""Of a cosine similarity: less is noise."""

SHARE = 0.2
"""Part of a series whose mean is compared with that of another part."""

FEW_STEPS = 10
"""Of fewer logged steps no trend is told."""

KL_GROWTH = 4.0
"""Mean of the KL's last fifth over that of its middle fifth. Growth by a constant step gives 1.8, by a square 3.2."""

KL_SHARE = 0.5
"""KL term over reward term, both as they have moved the loss, from which the KL term rules."""

FACES_LOST = 0.1
"""Rise of the part of frames without a face."""

FACELESS = 0.5
"""Part of frames without a face that is told even where it does not rise."""

SPIKE = 10.0
"""Gradient norm over its median that counts as a spike."""

CLIPPED_SHARE = 0.9
"""Part of the steps whose gradient is clipped from which that is told."""

LOST_SHARE, WAITING_SHARE = 0.15, 0.35
"""Part of the time that was lost to restarts; part of a step that waits for data."""


@dataclass(frozen=True)
class Finding:
    """Something that a person should know of a run."""

    level: Level
    title: str
    text: str
    advice: str = ""
    """What to try."""


def findings(run: RunData, times: Times) -> list[Finding]:
    """Return what is to be said of a run, warnings first."""
    found = [finding for rule in RULES for finding in rule(run)]
    found += _lost(times)
    return sorted(found, key=lambda finding: ("warning", "note", "good").index(finding.level))


def guarded(run: RunData) -> Iterator[Finding]:
    """A rule of the guard was broken."""
    trip = run.guard
    if trip is None:
        return
    did = "stopped the run" if trip.action == "Stop" else "asked to suspend the run"
    advice = EXPLANATIONS[trip.reason].remedy
    yield Finding("warning", f"The guard {did} after step {trip.step}", trip.message, advice)


def overfits(run: RunData) -> Iterator[Finding]:
    """The training reward rises while the held-out one falls."""
    shown = held_out(run)
    if len(shown.means) < 3:
        return
    best = max(range(len(shown.means)), key=lambda place: shown.means[place])
    fall = shown.means[best] - shown.means[-1]
    spread = max(high - low for low, high in zip(shown.lowest, shown.highest, strict=True)) / 2
    reward = series(run.lines, "reward").since(shown.steps[best])
    rises = len(reward.values) >= 2 and reward.end(SHARE) > reward.begin(SHARE)
    if fall > max(SMALL, spread) and rises:
        yield Finding(
            "warning",
            "Training reward rises while the held-out reward falls",
            f"Since step {shown.steps[best]} the held-out reward has fallen from {shown.means[best]:.3f} to "
            f"{shown.means[-1]:.3f}, while the training reward rose from {reward.begin(SHARE):.3f} to {reward.end(SHARE):.3f}: "
            "the model learns the rows, or how to please the reward, and no longer the task.",
            f"Use the checkpoint near step {shown.steps[best]}. Then fewer steps, a lower learningRate or a higher klWeight; "
            "with another output, a smaller loraRank or more rows.",
        )


def kl_runs_away(run: RunData) -> Iterator[Finding]:
    """The KL grows ever faster, and counts."""
    kl, reward = series(run.lines, "kl"), series(run.lines, "reward")
    weight = _number(run, "kl_weight", 1.0)
    if len(kl.values) < FEW_STEPS or weight <= 0:
        return
    fifth = max(1, round(len(kl.values) * SHARE))
    middle = len(kl.values) // 2 - fifth // 2
    before, now = Series(kl.steps, kl.values[middle : middle + fifth]).end(1.0), kl.end(SHARE)
    gained = _reward_term(run, abs(reward.end(SHARE) - reward.begin(SHARE))) if reward else 0.0
    counts = weight * now > KL_SHARE * gained
    if now > KL_GROWTH * before > 0 and counts:
        yield Finding(
            "warning",
            "KL runs away",
            f"The KL to the untrained model is {now:.3g}, {now / before:.0f} times what it was half-way: the model leaves "
            "what it knew, which shows as flicker, saturated colours or frozen motion before the reward tells.",
            f"Lower learningRate ({_text(run, 'learning_rate')}), raise klWeight ({weight:g}) tenfold, or stop at an earlier "
            "checkpoint and compare the videos.",
        )


def faces_vanish(run: RunData) -> Iterator[Finding]:
    """Fewer frames show a face than at the beginning, or few ever did."""
    for name, what in (("no_face_fraction", "training"), (f"{HELD_OUT}no_face_fraction", "held-out")):
        found = series(run.lines, name)
        if len(found.values) < 2:
            continue
        before, now = found.begin(SHARE), found.end(SHARE)
        advice = (
            f"Set missingFacePenalty below what a poor face scores (it is {_text(run, 'missing_face_penalty')}), lower "
            "learningRate, raise klWeight. Look at the videos: hands, turned heads and cuts hide faces too."
        )
        if now - before > FACES_LOST:
            text = f"{now:.0%} of the frames of the {what} videos show no face, {before:.0%} did at the beginning."
            yield Finding("warning", f"Faces vanish from the {what} videos", text, advice)
        elif now > FACELESS:
            text = f"{now:.0%} of the frames of the {what} videos show no face, from the beginning on; they teach nothing."
            advice = "Choose rows whose face is large and in front, or more inference steps and a larger size."
            yield Finding("warning", f"Most frames of the {what} videos show no face", text, advice)


def nothing_moves(run: RunData) -> Iterator[Finding]:
    """Neither reward changes."""
    reward, shown = series(run.lines, "reward"), held_out(run)
    if len(reward.values) < FEW_STEPS:
        return
    change = reward.end(SHARE) - reward.begin(SHARE)
    moved = [abs(change), *([abs(shown.means[-1] - shown.means[0])] if len(shown.means) > 1 else [])]
    if max(moved) < SMALL:
        yield Finding(
            "warning",
            "Nothing moves",
            f"After {run.step} steps the training reward has changed by {change:+.4f}"
            + (f" and the held-out reward by {shown.means[-1] - shown.means[0]:+.4f}." if len(shown.means) > 1 else "."),
            f"Raise learningRate ({_text(run, 'learning_rate')}) tenfold, train longer, raise rewardWeight "
            f"({_text(run, 'reward_weight')}) against klWeight ({_text(run, 'kl_weight')}), or raise "
            "loraRank (with another output).",
        )


def reward_falls(run: RunData) -> Iterator[Finding]:
    """The training reward is lower than it was."""
    reward = series(run.lines, "reward")
    if len(reward.values) < FEW_STEPS:
        return
    change = reward.end(SHARE) - reward.begin(SHARE)
    if change < -2 * SMALL:
        text = f"From {reward.begin(SHARE):.3f} at the beginning it went to {reward.end(SHARE):.3f}."
        yield Finding(
            "warning",
            "The training reward falls",
            text,
            "Lower learningRate, and look whether the KL or the gradient norm jumps.",
        )


def bad_steps(run: RunData) -> Iterator[Finding]:
    """Steps were skipped because something was not finite."""
    skipped = sum(1 for value in series(run.lines, "bad_steps").values if value > 0)
    if skipped:
        text = f"The loss or its gradient was not finite in {skipped} logged steps; they changed nothing."
        yield Finding(
            "warning",
            "Steps were skipped",
            text,
            "Lower learningRate or rewardWeight, raise klWeight; with another output, dtype fp32.",
        )


def gradient(run: RunData) -> Iterator[Finding]:
    """The gradient is clipped nearly always, or jumps."""
    norm, bound = series(run.lines, "grad_norm"), _number(run, "max_grad_norm", 0.0)
    if len(norm.values) < FEW_STEPS:
        return
    clipped = sum(1 for value in norm.values if value > bound > 0) / len(norm.values)
    median = sorted(norm.values)[len(norm.values) // 2]
    if clipped > CLIPPED_SHARE:
        text = f"In {clipped:.0%} of the steps the gradient norm (median {median:.3g}) is above maxGradNorm={bound:g}."
        advice = "Only its direction counts then. That may be wanted; otherwise raise maxGradNorm or lower rewardWeight."
        yield Finding("note", "The gradient is clipped at nearly every step", text, advice)
    elif median > 0 and max(norm.values) > SPIKE * median:
        at = norm.steps[norm.values.index(max(norm.values))]
        text = f"At step {at} it was {max(norm.values):.3g}, its median is {median:.3g}."
        yield Finding("note", "The gradient norm jumps", text, "Set maxGradNorm near the median, or look at that step's row.")


def improves(run: RunData) -> Iterator[Finding]:
    """The held-out reward has risen beyond its spread, or the best evaluation is not the last one, or there is none."""
    shown = held_out(run)
    if not shown.means:
        advice = (
            "Set evalRows (or evalDataset), evalSteps and evalNoiseSeeds: then the page shows whether other faces get better too."
        )
        yield Finding(
            "note", "No held-out reward", "Only the reward of trained rows is known, which rises by overfitting too.", advice
        )
        return
    rise = shown.means[-1] - shown.means[0]
    beyond = shown.noises > 1 and shown.lowest[-1] > shown.highest[0]
    if len(shown.means) > 1 and rise > SMALL:
        sure = f", beyond the spread of {shown.noises} noises" if beyond else ""
        text = f"From {shown.means[0]:.3f} before training to {shown.means[-1]:.3f} after step {shown.steps[-1]}{sure}."
        advice = (
            ""
            if beyond
            else "A difference within the spread may be luck: raise evalNoiseSeeds, or evalRows with another output, to be sure."
        )
        yield Finding("good", "The held-out reward has risen", text, advice)


def waits_for_data(run: RunData) -> Iterator[Finding]:
    """Much of a step is preparation, which can be kept on disk."""
    found = parts(run.lines)
    total = sum(part.end(SHARE) for part in found.values())
    waited = found["prepare"].end(SHARE) if "prepare" in found else 0.0
    if total > 0 and waited / total > WAITING_SHARE:
        text = f"{waited:.1f} of {total:.1f} seconds of a step go into rows and their conditions ({SECONDS}prepare)."
        yield Finding(
            "note",
            "Steps wait for their data",
            text,
            "Switch on cacheConditions and cacheReferences, and use a fast cache volume.",
        )


def unreadable(run: RunData) -> Iterator[Finding]:
    """Something that the run has stored is damaged."""
    for text in run.unreadable:
        yield Finding("note", "Something is missing from this page", text)


def _lost(times: Times) -> Iterator[Finding]:
    """Much time was lost to restarts."""
    if times.total > 0 and times.lost / times.total > LOST_SHARE:
        text = (
            f"{times.lost / times.total:.0%} of the time is lost to restarts ({times.restarts}): steps made twice, and waiting."
        )
        yield Finding(
            "warning", "Restarts are expensive", text, "Lower saveSteps, and see the job's restartHistory for the cause."
        )


Rule = Callable[[RunData], Iterator[Finding]]
RULES: tuple[Rule, ...] = (
    guarded,
    overfits,
    kl_runs_away,
    faces_vanish,
    nothing_moves,
    reward_falls,
    bad_steps,
    gradient,
    waits_for_data,
    improves,
    unreadable,
)


def _reward_term(run: RunData, score: float) -> float:
    """Return what a difference of scores is in the loss, with one reward."""
    return score / _number(run, "reward_scale", 0.16) * _number(run, "reward_weight", 0.1)


def _number(run: RunData, name: str, otherwise: float) -> float:
    value: Any = run.training.get(name)
    return float(value) if isinstance(value, int | float) else otherwise


def _text(run: RunData, name: str) -> str:
    value = run.training.get(name)
    return f"now {value:g}" if isinstance(value, int | float) else "unknown"
