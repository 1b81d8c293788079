"""Reward FL raises the face score on the tiny family: on fixed noise that is never trained with, for three seeds."""

import pytest
import torch

from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.samples import mean_score
from rewardfl_trainer.train import train_batch
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

ROWS = 8
STEPS = 30
MARGIN = 0.03
SEEDS = (1, 2, 3)


def evaluate(run: Run, moment: str) -> float:
    return mean_score(run.sampler.generate(run.sample_positions, moment))  # type: ignore[arg-type]


def weights(run: Run) -> dict[str, torch.Tensor]:
    networks = run.feedback.rollout.models.networks()
    return {f"{name}.{key}": value.clone() for name, network in networks.items() for key, value in network.state_dict().items()}


def learn(run: Run) -> tuple[float, float]:
    """Train; return the mean score of the evaluation before and after."""
    before = evaluate(run, "before")
    for batch in run.order.batches():
        _, report = train_batch(run, batch)
        assert report.applied
    return before, evaluate(run, "after")


def run_of(make_config: MakeConfig, process: Process, **training: object) -> Run:
    given = {"num_sample_videos": ROWS, "max_steps": STEPS, "reward_weight": 1.0, "kl_weight": 0.01, "lora_rank": 8}
    return assemble(make_config(rows=ROWS, **{**given, **training}), process)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_face_score_rises_by_a_margin(make_config: MakeConfig, process: Process, seed: int) -> None:
    before, after = learn(run_of(make_config, process, seed=seed, learning_rate=3e-3))
    assert after > before + MARGIN


def test_with_learning_rate_zero_nothing_changes_at_all(make_config: MakeConfig, process: Process) -> None:
    run = run_of(make_config, process, learning_rate=0.0, max_steps=2, num_sample_videos=2)
    untouched = weights(run)
    before, after = learn(run)
    assert after == before
    for name, value in weights(run).items():
        assert torch.equal(value, untouched[name]), name
    for position in run.sample_positions:
        name = f"row-{position}.mp4"
        first, second = ((run.folder / "samples" / moment / name).read_bytes() for moment in ("before", "after"))
        assert first == second
