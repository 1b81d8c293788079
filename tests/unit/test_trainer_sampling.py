"""The sampler's arithmetic: golden numbers of the reference, and where the gradient flows."""

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.sampling import Plan, Schedule, Window, denoise, euler_step, kl_term
from tests.unit.datasets import parameters
from tests.unit.small_networks import random

REFERENCE_TIMESTEPS = [1000, 972.22, 937.5, 892.86, 833.33, 750, 625, 416.67]
SHAPE = (1, 16, 3, 4, 4)


def a14b(**changes: object) -> Plan:
    given = {"trainable_models": "dit2", "lora_base_model": "dit2", "min_timestep_boundary": 0.9}
    return Plan.of(parameters(**{**given, **changes}))


def test_timesteps_are_those_of_the_reference() -> None:
    schedule = Schedule.shifted(8, 5.0)
    timesteps = torch.cat([schedule.timestep(step) for step in range(8)])
    assert timesteps.dtype == torch.float32
    assert timesteps.tolist() == pytest.approx(REFERENCE_TIMESTEPS, abs=0.005)
    assert float(timesteps[2]) == 937.5
    assert float(schedule.sigmas[-1]) == 0


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (4, 3.0), (50, 5.0), (1000, 8.0)])
def test_sigmas_fall_from_one_to_zero(steps: int, shift: float) -> None:
    sigmas = Schedule.shifted(steps, shift).sigmas
    assert len(sigmas) == steps + 1
    assert (float(sigmas[0]), float(sigmas[-1])) == (1, 0)
    assert bool((sigmas.diff() < 0).all())


def test_boundary_09_gives_three_steps_to_the_high_noise_expert() -> None:
    assert a14b().experts == ("dit",) * 3 + ("dit2",) * 5


def test_the_window_of_the_reference_trains_the_low_noise_expert_only() -> None:
    assert a14b().window_experts == {"dit2"}
    assert list(a14b().window.steps) == [4, 5, 6, 7]


def test_a_timestep_on_the_boundary_belongs_to_the_high_noise_expert() -> None:
    assert a14b(min_timestep_boundary=0.9375).experts == ("dit",) * 3 + ("dit2",) * 5


def test_above_the_upper_boundary_the_low_noise_expert_denoises() -> None:
    assert a14b(max_timestep_boundary=0.95).experts[:3] == ("dit2", "dit2", "dit")


def test_both_boundaries_one_mean_one_dit_for_every_step() -> None:
    plan = Plan.of(parameters(trainable_models="dit", lora_base_model="dit"))
    assert set(plan.experts) == {"dit"}


@pytest.mark.parametrize("boundary", [0.5, 0.95])
def test_roll_has_its_boundary_whatever_the_parameters_say(boundary: float) -> None:
    roll = a14b(compat="roll", dtype="bf16", min_timestep_boundary=boundary)
    assert roll.experts == a14b(min_timestep_boundary=0.9).experts != a14b(min_timestep_boundary=boundary).experts


@pytest.mark.parametrize(
    ("changes", "experts", "window"),
    [
        ({"num_inference_steps": 4, "mid_timestep": 1, "final_timestep": 2}, ["dit", "dit", "dit2", "dit2"], [1, 2]),
        ({"sigma_shift": 1.0, "num_inference_steps": 5, "final_timestep": 4}, ["dit", "dit2", "dit2", "dit2", "dit2"], [4]),
        ({"min_timestep_boundary": 0.7, "mid_timestep": 6}, ["dit"] * 6 + ["dit2"] * 2, [6, 7]),
        ({"max_timestep_boundary": 0.98, "final_timestep": 5}, ["dit2", "dit", "dit"] + ["dit2"] * 5, [4, 5]),
    ],
)
def test_steps_experts_and_window_are_those_of_the_parameters(
    changes: dict[str, object], experts: list[str], window: list[int]
) -> None:
    plan = a14b(**changes)
    assert len(plan.schedule) == len(experts)
    assert list(plan.experts) == experts
    assert list(plan.window.steps) == window


def test_the_euler_step_is_computed_in_fp32_and_cast_back() -> None:
    latents, velocity = (random(4096, seed=seed).bfloat16() for seed in (1, 2))
    sigma, sigma_next = Schedule.shifted(8, 5.0).sigmas[2:4]
    moved = euler_step(latents, velocity, sigma, sigma_next)
    assert moved.dtype == torch.bfloat16
    exact = latents.double() + velocity.double() * (sigma_next.double() - sigma.double())
    assert float((moved != exact.bfloat16()).float().mean()) < 0.001
    rounded = latents + velocity * (sigma_next - sigma).bfloat16()
    assert float((moved != rounded).float().mean()) > 0.05, "in bf16 many values would be others"


def test_every_step_starts_from_latents_in_the_compute_type() -> None:
    seen: list[torch.dtype] = []

    def velocity(_step: int, latents: Tensor) -> Tensor:
        seen.append(latents.dtype)
        return latents

    latents, _ = denoise(random(*SHAPE).bfloat16(), Schedule.shifted(8, 5.0), velocity)
    assert [*seen, latents.dtype] == [torch.bfloat16] * 9


def test_perfect_velocity_recovers_the_video_in_any_number_of_steps() -> None:
    noise, video = random(*SHAPE, seed=1, dtype=torch.float64), random(*SHAPE, seed=2, dtype=torch.float64)
    for steps in (1, 3, 8):
        latents, kl = denoise(noise, Schedule.shifted(steps, 5.0), lambda _step, _latents: noise - video)
        torch.testing.assert_close(latents, video, rtol=0, atol=1e-7)
        assert float(kl) == 0


def test_kl_is_the_scaled_squared_difference() -> None:
    v, reference = random(*SHAPE, seed=1), random(*SHAPE, seed=2)
    expected = ((v - reference) ** 2 / (2 * 0.75**2)).mean()
    torch.testing.assert_close(kl_term(v, reference, torch.tensor(0.75)), expected)


class Recorder:
    """A velocity that scales the latents by a trained number, and remembers where it was asked with gradient."""

    def __init__(self) -> None:
        self.scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        self.with_gradient: list[int] = []

    def __call__(self, step: int, latents: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.with_gradient.append(step)
        return latents * self.scale


def run(window: Window | None, **options: object) -> tuple[Recorder, Tensor, Tensor]:
    recorder = Recorder()
    noise = random(*SHAPE, seed=3, dtype=torch.float64)
    latents, kl = denoise(noise, Schedule.shifted(8, 5.0), recorder, window=window, **options)  # type: ignore[arg-type]
    return recorder, latents, kl


def test_only_the_window_runs_with_gradient() -> None:
    recorder, latents, _ = run(Window(4, 7))
    assert recorder.with_gradient == [4, 5, 6, 7]
    assert latents.requires_grad


def test_without_a_window_nothing_carries_gradient() -> None:
    recorder, latents, _ = run(None)
    assert recorder.with_gradient == []
    assert not latents.requires_grad


def test_a_window_that_ends_early_still_decodes_clean_latents() -> None:
    _, early, _ = run(Window(2, 4))
    _, whole, _ = run(Window(0, 7))
    torch.testing.assert_close(early, whole)


def test_steps_after_the_window_pass_its_gradient_straight_through() -> None:
    recorder, latents, _ = run(Window(2, 4))
    latents.sum().backward()
    scale = recorder.scale.grad
    sigmas = Schedule.shifted(8, 5.0).sigmas.double()
    x, gradient = random(*SHAPE, seed=3, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    for step in range(8):
        delta = sigmas[step + 1] - sigmas[step]
        if step in Window(2, 4):
            gradient = gradient * (1 + 0.1 * delta) + x * delta
        x = x * (1 + 0.1 * delta)
    torch.testing.assert_close(scale, gradient.sum())


def test_kl_is_averaged_over_its_steps_and_carries_no_gradient_of_the_reference() -> None:
    reference_scale = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    recorder, _, kl = run(Window(4, 7), reference=lambda _step, latents: latents * reference_scale, kl_steps=[4, 6])
    kl.backward()
    assert reference_scale.grad is None
    assert recorder.scale.grad is not None
    single = [run(Window(4, 7), reference=lambda _step, x: x * 0.2, kl_steps=[step])[2] for step in (4, 6)]
    torch.testing.assert_close(kl.detach(), torch.stack(single).mean().detach())
