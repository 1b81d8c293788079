"""The loss and what its randomness depends on."""

import pytest
import torch

from rewardfl_trainer.noise import derived_seed, kl_steps, sample_noise
from rewardfl_trainer.objective import Objective
from rewardfl_trainer.sampling import Window
from tests.unit.datasets import parameters

SHAPE = (1, 16, 3, 8, 8)


def test_the_loss_is_the_one_of_the_specification() -> None:
    objective = Objective.of(parameters())
    score, kl = torch.tensor(0.70), torch.tensor(0.05)
    assert float(objective.loss(score, kl)) == pytest.approx(-(0.70 - 0.54) / 0.16 * 0.1 + 1.0 * 0.05)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"reward_baseline": 0.7}, 0.05),
        ({"reward_scale": 0.08}, -0.15),
        ({"reward_weight": 0.2}, -0.15),
        ({"kl_weight": 0.0}, -0.1),
    ],
)
def test_each_parameter_of_the_objective_acts_as_its_name_says(change: dict[str, float], expected: float) -> None:
    loss = Objective.of(parameters(**change)).loss(torch.tensor(0.70), torch.tensor(0.05))
    assert float(loss) == pytest.approx(expected, abs=1e-6)


def test_a_better_score_lowers_the_loss_and_a_larger_kl_raises_it() -> None:
    score, kl = torch.tensor(0.4, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    Objective.of(parameters()).loss(score, kl).backward()
    assert score.grad is not None
    assert float(score.grad) == pytest.approx(-0.1 / 0.16)
    assert kl.grad is not None
    assert float(kl.grad) == 1.0


def test_the_same_seed_row_and_draw_give_the_same_noise() -> None:
    assert torch.equal(sample_noise(SHAPE, seed=1, row=2, draw=3), sample_noise(SHAPE, seed=1, row=2, draw=3))


@pytest.mark.parametrize("other", [{"seed": 9}, {"row": 9}, {"draw": 9}, {"purpose": "sample"}])
def test_another_seed_row_draw_or_purpose_gives_other_noise(other: dict[str, object]) -> None:
    given: dict[str, object] = {"seed": 1, "row": 2, "draw": 3}
    first, second = sample_noise(SHAPE, **given), sample_noise(SHAPE, **{**given, **other})  # type: ignore[arg-type]
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.1


def test_noise_has_mean_zero_and_variance_one() -> None:
    noise = sample_noise((1, 16, 8, 32, 32), seed=1, row=0, draw=0)
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(1, abs=0.01)


def test_derived_seeds_do_not_confuse_neighbouring_parts() -> None:
    seeds = {derived_seed("x", first, second) for first in range(30) for second in range(30)}
    assert len(seeds) == 900
    assert derived_seed("a", 1, 11) != derived_seed("a", 11, 1)


def test_kl_on_all_steps_is_the_whole_window() -> None:
    assert kl_steps(Window(4, 7), sampled=False, seed=0, row=0, visit=0) == [4, 5, 6, 7]


def test_sampled_kl_steps_are_drawn_uniformly_from_the_window() -> None:
    drawn = [kl_steps(Window(4, 7), sampled=True, seed=0, row=row, visit=0)[0] for row in range(2000)]
    counts = {step: drawn.count(step) for step in set(drawn)}
    assert set(counts) == {4, 5, 6, 7}
    assert min(counts.values()) > 400
