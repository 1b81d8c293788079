"""Reward FL raises the face score on the tiny family: on fixed noise that is never trained with, for three seeds."""

import json

import pytest
import torch

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from tests.distributed import learning_run, warm
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

ROWS = 8
STEPS = 30
MARGIN = 0.03
SEEDS = (1, 2, 3)
TIMEOUT_SECONDS = 800


def weights(run: Run) -> dict[str, torch.Tensor]:
    networks = run.feedback.rollout.models.networks()
    return {f"{name}.{key}": value.clone() for name, network in networks.items() for key, value in network.state_dict().items()}


def config_of(make_config: MakeConfig, **training: object) -> TrainerConfig:
    given = {"num_sample_videos": ROWS, "max_steps": STEPS, "reward_weight": 1.0, "kl_weight": 0.01, "lora_rank": 8}
    return make_config(rows=ROWS, **{**given, **training})


@pytest.fixture(scope="module")
def scores(
    warm_server: None, make_module_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, float]]:
    """The scores before and after by seed. The runs of all seeds go at the same time, with a thread each."""
    folder = tmp_path_factory.mktemp("scores")
    runs = []
    for seed in SEEDS:
        path = folder / f"{seed}.yaml"
        path.write_text(
            config_of(make_module_config, name=f"seed-{seed}", seed=seed, learning_rate=3e-3).dump(), encoding="utf-8"
        )
        runs.append(warm.start(learning_run.main, path, path.with_suffix(".json")))
    warm.finish(runs, TIMEOUT_SECONDS)
    return {seed: json.loads((folder / f"{seed}.json").read_text()) for seed in SEEDS}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_face_score_rises_by_a_margin(scores: dict[int, dict[str, float]], seed: int) -> None:
    assert scores[seed]["after"] > scores[seed]["before"] + MARGIN


def test_with_learning_rate_zero_nothing_changes_at_all(make_config: MakeConfig, process: Process) -> None:
    run = assemble(config_of(make_config, learning_rate=0.0, max_steps=2, num_sample_videos=2), process)
    untouched = weights(run)
    before, after = learning_run.learn(run)
    assert after == before
    for name, value in weights(run).items():
        assert torch.equal(value, untouched[name]), name
    for position in run.sample_positions:
        name = f"row-{position}.mp4"
        first, second = ((run.folder / "samples" / moment / name).read_bytes() for moment in ("before", "after"))
        assert first == second
