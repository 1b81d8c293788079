"""The guard's rules by numbers: what breaks them, what does not, and what an interruption changes (nothing)."""

import json
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.guard import Guard, GuardTrip
from rewardfl_trainer import guard
from rewardfl_trainer.guard import Evaluated, Memory, Verdict

KL = Guard.model_validate({"kl": {"max": 0.5, "steps": 4}})
FACES = Guard.model_validate({"noFace": {"maxFraction": 0.25, "steps": 3}})
HELD_OUT = Guard.model_validate({"heldOut": {"patience": 2}})


def steps(memory: Memory, *values: dict[str, float]) -> Memory:
    for value in values:
        memory = guard.after_step(memory, value)
    return memory


def verdict_on(rules: Guard | None, name: str, *values: float) -> Verdict | None:
    return guard.verdict_on_steps(steps(Memory(rules=rules), *({name: value} for value in values)))


Course = list[tuple[float, float | list[float]]]
"""Evaluations: the mean training reward of the steps before each, and its held-out score, or the scores of its parts."""


def judged(rules: Guard | None, course: Course) -> Iterator[tuple[Memory, Verdict | None]]:
    """Go through evaluations, ten steps apart."""
    memory = Memory(rules=rules)
    for number, (reward, scores) in enumerate(course):
        memory = guard.after_step(memory, {"reward": reward}) if number else memory
        parts = scores if isinstance(scores, list) else [scores]
        now = Evaluated.model_construct(step=10 * number, reward=sum(parts) / len(parts), parts=parts)  # may be NaN
        memory = guard.after_evaluation(memory, now)
        yield memory, guard.verdict_on_evaluations(memory, now)


def last(rules: Guard | None, *course: tuple[float, float | list[float]]) -> tuple[Memory, Verdict | None]:
    """Return what is known after the last evaluation."""
    return list(judged(rules, list(course)))[-1]


def tripped_at(rules: Guard | None, *course: tuple[float, float | list[float]]) -> int | None:
    """Return the number of the evaluation that breaks the rule first."""
    return next((number for number, (_, verdict) in enumerate(judged(rules, list(course))) if verdict), None)


def test_a_mean_kl_above_the_bound_breaks_the_rule_and_says_bound_and_value() -> None:
    assert verdict_on(KL, "kl", 0.1, 0.2, 0.6, 0.6, 0.7) == Verdict(
        Reason.KL_TOO_HIGH, "The KL to the untrained model was 0.525 as a mean over the last 4 steps, above guard.kl.max=0.5."
    )


@pytest.mark.parametrize(
    "values",
    [(9, 9, 9), (0.5, 0.5, 0.5, 0.5), (0, 0, 0, 1.9), (9, 0.1, 0.1, 0.1, 0.1), (math.nan, 9, 9, 9), (9, 9, math.inf, 9)],
    ids=["window not full", "at the bound", "one outlier", "outlier left the window", "nan is no step", "inf is no step"],
)
def test_a_kl_within_its_bound_breaks_nothing(values: tuple[float, ...]) -> None:
    assert verdict_on(KL, "kl", *values) is None


def test_steps_without_a_number_make_no_gap_in_the_window() -> None:
    assert verdict_on(KL, "kl", 0.6, math.nan, 0.6, 0.6, math.inf, 0.6) is not None


def test_a_mean_share_of_faceless_frames_above_the_bound_breaks_the_rule() -> None:
    assert verdict_on(FACES, "no_face_fraction", 0, 0.25, 0.25, 0.5) == Verdict(
        Reason.FACES_VANISHED,
        "33% of the generated frames showed no face as a mean over the last 3 steps, above guard.noFace.maxFraction=0.25.",
    )
    assert verdict_on(FACES, "no_face_fraction", 1, 0.25, 0.25, 0.25) is None
    assert verdict_on(FACES, "no_face_fraction", math.nan, math.nan, math.nan, math.nan) is None


def test_rewards_that_look_for_no_faces_break_nothing() -> None:
    assert verdict_on(FACES, "kl", 1, 1, 1, 1) is None


def test_a_run_without_a_guard_is_never_judged() -> None:
    memory = steps(Memory(), *[{"kl": 1e9, "no_face_fraction": 1.0, "reward": 0.1 * number} for number in range(50)])
    assert guard.verdict_on_steps(memory) is None
    assert (memory.kl, memory.no_face) == ([], []), "and remembers no windows"
    assert tripped_at(None, *[(0.1 * number, 1 - 0.1 * number) for number in range(9)]) is None


def test_a_held_out_reward_that_falls_while_the_training_reward_rises_breaks_the_rule_after_so_many_evaluations() -> None:
    course = [(0.0, 0.50), (0.50, 0.60), (0.60, 0.58), (0.70, 0.55), (0.80, 0.50)]
    assert tripped_at(HELD_OUT, *course) == 3
    verdict = last(HELD_OUT, *course[:4])[1]
    assert verdict == Verdict(
        Reason.HELD_OUT_REWARD_FELL,
        "The last 2 evaluations were worse than the best one: the held-out reward was 0.6000 at step 10 and is 0.5500, while the "
        "training reward rose from 0.5000 to 0.6500; guard.heldOut.patience=2.",
    )


def test_a_fall_while_the_training_reward_does_not_rise_breaks_nothing() -> None:
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.5, 0.5), (0.5, 0.4), (0.4, 0.3)) is None


def test_evaluations_between_which_one_was_no_worse_are_not_in_a_row() -> None:
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.6, 0.5), (0.7, 0.6), (0.8, 0.5)) is None
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.6, 0.5), (0.7, 0.6), (0.8, 0.5), (0.9, 0.5)) == 5


def test_a_better_evaluation_is_what_later_ones_are_compared_with_and_an_equal_one_is_not() -> None:
    memory, _ = last(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.6, 0.5), (0.7, 0.7), (0.8, 0.7), (0.9, 0.69))
    assert memory.best is not None
    assert (memory.best.step, memory.worse) == (30, 1)
    assert (memory.at_best.value, memory.since_best.value) == (0.7, pytest.approx(0.85))


def test_a_run_that_only_ever_got_worse_than_before_training_is_compared_with_its_first_steps() -> None:
    assert tripped_at(HELD_OUT, (0, 0.6), (0.5, 0.55), (0.6, 0.5)) == 2
    assert tripped_at(HELD_OUT, (0, 0.6), (0.5, 0.55), (0.5, 0.5)) is None
    one = Guard.model_validate({"heldOut": {"patience": 1}})
    assert tripped_at(one, (0, 0.6), (0.5, 0.55)) is None, "there is nothing yet that the training reward could have risen from"


def test_a_fall_counts_from_twice_its_standard_error_on_row_by_row() -> None:
    """Lost: 0.05, 0.03, 0.01; mean 0.03, standard deviation 0.02, standard error 0.02 / sqrt(3) = 0.0115."""
    best, now = [0.9, 0.6, 0.3], [0.85, 0.57, 0.29]
    assert guard.fall(best, now) == (pytest.approx(0.03), pytest.approx(0.02 / math.sqrt(3)))
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, best), (0.6, now), (0.7, now)) == 3
    verdict = last(HELD_OUT, (0, [0.1] * 3), (0.5, best), (0.6, now), (0.7, now))[1]
    assert verdict is not None
    assert "was 0.6000 at step 10 and is 0.5700 (by 0.0300, standard error 0.0115)" in verdict.message
    mixed = [0.84, 0.60, 0.27]
    lost, error = guard.fall(best, mixed)
    assert error < lost < 2 * error
    assert tripped_at(HELD_OUT, (0, [0.1] * 3), (0.5, best), (0.6, mixed), (0.7, mixed)) is None


def test_the_handbooks_example_ends_as_it_says() -> None:
    best, first, second, unclear = [0.90, 0.60, 0.30], [0.86, 0.58, 0.29], [0.85, 0.57, 0.29], [0.85, 0.60, 0.32]
    figures = [[round(value, 4) for value in guard.fall(best, now)] for now in (first, second, unclear)]
    assert figures == [[0.0233, 0.0088], [0.03, 0.0115], [0.01, 0.0208]]
    before = [(0.0, [0.4] * 3), (0.5, [0.5] * 3)]
    assert tripped_at(HELD_OUT, *before, (0.62, best), (0.66, first), (0.70, second)) == 4
    assert tripped_at(HELD_OUT, *before, (0.62, best), (0.66, first), (0.70, unclear)) is None


def test_a_fall_that_is_no_more_than_min_delta_does_not_count() -> None:
    rules = Guard.model_validate({"heldOut": {"patience": 2, "minDelta": 0.05}})
    assert tripped_at(rules, (0, 0.5), (0.5, 0.60), (0.6, 0.56), (0.7, 0.56), (0.8, 0.56)) is None
    assert tripped_at(rules, (0, 0.5), (0.5, 0.60), (0.6, 0.54), (0.7, 0.54)) == 3


def test_an_evaluation_that_is_not_a_number_neither_counts_nor_interrupts() -> None:
    nan = math.nan
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.6, 0.5), (0.7, nan), (0.8, 0.5)) == 4
    assert tripped_at(HELD_OUT, (0, nan), (0.5, 0.6), (0.6, nan), (0.7, nan)) is None
    assert tripped_at(HELD_OUT, (0, 0.5), (0.5, 0.6), (nan, 0.5), (0.8, 0.5)) == 3, "nor does such a training reward"


def test_an_evaluation_of_other_rows_is_a_new_beginning() -> None:
    memory, verdict = last(HELD_OUT, (0, [0.9, 0.9]), (0.5, [0.1] * 3), (0.6, [0.1] * 3), (0.7, [0.1] * 3))
    assert memory.best is not None
    assert (memory.best.step, verdict) == (10, None)


def noisy_course(seed: int, slope: float) -> Course:
    noise = random.Random(seed)
    rows = [noise.random() for _ in range(4)]
    return [(0.1 * n, [row + slope * n + (noise.gauss(0, 0.001)) for row in rows]) for n in range(12)]


@pytest.mark.parametrize("seed", range(20))
def test_runs_that_improve_are_never_stopped_and_runs_that_worsen_always(seed: int) -> None:
    assert tripped_at(HELD_OUT, *noisy_course(seed, 0.01)) is None
    assert tripped_at(HELD_OUT, *noisy_course(seed, -0.01)) is not None


def share_stopped(rows: int, slope: float, evaluations_made: int) -> float:
    """Of 300 runs whose rows change by chance, and by `slope` an evaluation, the share that the default rule stops."""
    rules, chance, stopped = Guard.model_validate({"heldOut": {}}), random.Random(rows), 0
    for _ in range(300):
        level = [chance.random() for _ in range(rows)]
        course: Course = [(0.1 * n, [row + slope * n + chance.gauss(0, 0.02) for row in level]) for n in range(evaluations_made)]
        stopped += tripped_at(rules, *course) is not None
    return stopped / 300


@pytest.mark.parametrize(("rows", "at_most"), [(4, 0.2), (8, 0.1)])
def test_chance_alone_seldom_breaks_the_rule_and_a_real_fall_nearly_always(rows: int, at_most: float) -> None:
    """A run that stays where it is: its best evaluation is its luckiest. docs/guard.md has the figures."""
    assert share_stopped(rows, 0, 12) < at_most
    assert share_stopped(rows, -0.01, 20) > 0.9


def trip(memory: Memory, action: str = "Suspend") -> Memory:
    found = GuardTrip.model_validate(
        {"reason": Reason.KL_TOO_HIGH, "action": action, "step": 7, "time": "2026-01-01T00:00:00Z", "message": "so"}
    )
    return guard.tripped(memory, found)


def test_what_goes_on_after_a_broken_rule_counts_anew() -> None:
    over = steps(Memory(rules=KL), *[{"kl": 9.0}] * 4)
    assert guard.verdict_on_steps(over) is not None
    again = steps(trip(over), *[{"kl": 9.0}] * 3)
    assert guard.verdict_on_steps(again) is None
    assert guard.verdict_on_steps(steps(again, {"kl": 9.0})) is not None
    fallen, verdict = last(HELD_OUT, (0, 0.5), (0.5, 0.6), (0.6, 0.5), (0.7, 0.5))
    assert verdict is not None
    rearmed = trip(fallen)
    assert (rearmed.worse, rearmed.best) == (0, fallen.best)


def test_other_rules_begin_with_empty_windows_and_the_best_evaluation_so_far() -> None:
    over = steps(last(KL, (0, 0.5), (0.5, 0.6))[0], *[{"kl": 9.0}] * 3)
    changed = guard.rearmed(trip(over), FACES)
    assert (changed.rules, changed.kl, changed.trip, changed.best) == (FACES, [], None, over.best)


def worsening_run(seed: int) -> list[tuple[dict[str, float], list[float]]]:
    """The metrics of each step, and the scores of an evaluation where one is made; everything gets worse, unevenly."""
    noise = random.Random(seed)
    return [
        (
            {"reward": noise.random() + 0.05 * n, "kl": noise.random() + 0.01 * n, "no_face_fraction": 0.02 * n * noise.random()},
            [row + noise.gauss(0, 0.01) - 0.02 * abs(n - 10) for row in (0.9, 0.6, 0.3)] if n % 3 == 0 else [],
        )
        for n in range(60)
    ]


def first_verdict(rules: Guard, seed: int, interrupted_after: int | None) -> tuple[int, Any] | None:
    memory = Memory(rules=rules)
    for number, (values, scores) in enumerate(worsening_run(seed)):
        memory = guard.after_step(memory, values)
        verdict = guard.verdict_on_steps(memory)
        if scores:
            now = Evaluated(step=number, reward=sum(scores) / 3, parts=scores)
            memory = guard.after_evaluation(memory, now)
            verdict = verdict or guard.verdict_on_evaluations(memory, now)
        if verdict is not None:
            return number, verdict
        if number == interrupted_after:
            memory = Memory.model_validate(json.loads(json.dumps(memory.to_trainer())))
    return None


@pytest.mark.parametrize(
    "rule",
    [{"kl": {"max": 0.8, "steps": 7}}, {"noFace": {"maxFraction": 0.3, "steps": 5}}, {"heldOut": {"patience": 3}}],
    ids=["kl", "faces", "held out"],
)
@pytest.mark.parametrize("seed", range(4))
def test_an_interrupted_run_comes_to_the_same_verdict_at_the_same_step(seed: int, rule: dict[str, Any]) -> None:
    rules = Guard.model_validate(rule)
    unbroken = first_verdict(rules, seed, None)
    assert unbroken is not None
    assert unbroken[0] > 5
    for after in range(unbroken[0]):
        assert first_verdict(rules, seed, after) == unbroken
