"""`compat: roll` computes the loss of ROLL's Reward FL; the correct form differs from it in each point that it mends."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.sampling import denoise
from rewardfl_trainer.wan_dit import predict_velocity
from tests.distributed.conftest import MakeConfig
from tests.unit import roll_recipe

pytestmark = pytest.mark.slow

ROLL = {"compat": "roll", "dtype": "bf16", "min_timestep_boundary": 0.9}
KEPT = {"cache_prefix": False}
"""The reference needs both experts in memory."""


@pytest.fixture(scope="module")
def run(make_module_config: MakeConfig, process: Process) -> Run:
    """A run whose LoRA is not at its start, so that there is a KL."""
    made = assemble(make_module_config(rows=2, name="roll", **ROLL, **KEPT), process)
    for name, parameter in made.trainable.parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(7))
    return made


@torch.no_grad()
def reference_video(run: Run, position: int) -> tuple[Tensor, Tensor]:
    """Denoise and decode as ROLL does: seed 24, t < 900 for the low-noise expert, latents in bf16, DiffSynth's tiled decode."""
    models = run.feedback.rollout.models
    condition = run.preparer(position).condition
    assert condition is not None
    u = torch.linspace(1000, 0, 9) / 1000
    sigmas = 5 * u / (1 + 4 * u)
    latents = torch.randn(condition.latent_shape, generator=torch.Generator().manual_seed(24)).bfloat16()
    terms = []
    for step in range(8):
        timestep = sigmas[step : step + 1] * 1000
        dit = models.network("dit2" if float(timestep) < 900 else "dit")
        inputs = (latents, timestep, condition.context_BLD, condition.image_BCthw)
        velocity = predict_velocity(dit, *inputs)  # type: ignore[arg-type]
        if step >= 4:
            with run.trainable.untrained():
                before = predict_velocity(dit, *inputs)  # type: ignore[arg-type]
            sigma = timestep / 1000
            terms.append(torch.mean((velocity.float() - before.float()) ** 2 / (2 * sigma**2)))
        latents = (latents.float() + (sigmas[step + 1] - sigmas[step]) * velocity.float()).bfloat16()
    video = models.vae.tiled_decode(latents, "cpu", (34, 34), (18, 16))
    return video.clamp(-1, 1), torch.stack(terms).mean()


@pytest.mark.parametrize("position", [0, 1])
def test_the_loss_is_that_of_roll(run: Run, position: int) -> None:
    folder = Path(run.config.training.reward_model_path)
    video_B3THW, kl = reference_video(run, position)
    truth_3THW = run.preparer.dataset[position].video_3THW
    score = roll_recipe.score(folder, video_B3THW[0].transpose(0, 1), truth_3THW.transpose(0, 1))
    expected = roll_recipe.loss(score, kl)

    loss, outcome = run.feedback.loss(run.preparer(position), visit=position)

    assert outcome.kl == pytest.approx(float(kl), rel=1e-5)
    assert outcome.kl > 1e-3
    assert outcome.reward == pytest.approx(float(score), abs=2e-5)
    assert loss.dtype == torch.bfloat16
    assert float(loss.detach()) == pytest.approx(float(expected), rel=2**-7), "one step of bf16"


def test_every_visit_of_every_row_gets_the_noise_of_seed_24(run: Run) -> None:
    losses = {run.feedback.loss(run.preparer(0), visit=visit)[1].loss for visit in range(3)}
    assert len(losses) == 1


def test_rows_come_in_the_order_of_the_table_on_every_pass(run: Run) -> None:
    assert [run.order.sampler.batches(index) for index in range(3)] == [[[0], [1]]] * 3


def test_a_window_that_ends_early_is_decoded_while_it_is_noisy(make_config: MakeConfig, process: Process) -> None:
    noise, latents = {}, {}
    for compat in ("roll", "none"):
        config = make_config(name=compat, **{**ROLL, "compat": compat, "mid_timestep": 2, "final_timestep": 3})
        rollout = assemble(config, process).feedback.rollout
        noise[compat] = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        latents[compat], _ = denoise(
            noise[compat],
            rollout.plan.schedule,
            lambda _step, latents_BCthw: torch.ones_like(latents_BCthw),
            window=rollout.plan.window,
            steps=range(rollout.plan.end),
        )
    left = rollout.plan.schedule.sigmas[4]
    torch.testing.assert_close(latents["roll"], noise["roll"] - (1 - left))
    torch.testing.assert_close(latents["none"], noise["none"] - 1)
