"""What DeepSpeed holds for A14B, by hand: 14.29 billion weights, 2 bytes each in bf16, 12 more for masters and two moments."""

from functools import cache

import pytest

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.estimate.engine import EngineBytes, Trained, engine_bytes
from rewardfl_trainer.estimate.networks import a14b, empty_models, empty_rewards
from rewardfl_trainer.estimate.reference import A14B_PARAMETERS
from rewardfl_trainer.estimate.result import Estimator
from rewardfl_trainer.estimate.step import Step

GB = 1e9
WEIGHTS = 14_288_901_184
ONE_GPU, EIGHT = 1, 8
FULL = {"lora_base_model": None}


def given(**changes: object) -> TrainingParameters:
    return TrainingParameters.model_validate({**A14B_PARAMETERS, **changes})


@cache
def trained(dtype: str, *, full: bool) -> Trained:
    return Estimator(a14b())._trained(given(dtype=dtype, **(FULL if full else {})))


def held(preset: DeepSpeedPreset, world_size: int, dtype: str = "bf16", *, full: bool = True) -> EngineBytes:
    section = {**preset_config(preset), "bf16": {"enabled": full and dtype == "bf16"}}
    return engine_bytes(section, trained(dtype, full=full), world_size)


def test_the_sizes_of_what_is_trained() -> None:
    full, lora = trained("bf16", full=True), trained("bf16", full=False)
    assert (full.numel, lora.numel) == (WEIGHTS, 153_354_240)
    assert full.network_bytes / GB == pytest.approx(28.58 + 0.37, abs=0.05)  # the time layers are fp32
    assert (full.element_bytes, lora.element_bytes) == (pytest.approx(full.network_bytes / WEIGHTS), 4)


def test_full_training_without_zero_holds_masters_moments_and_fp32_gradients_on_every_gpu() -> None:
    for world_size in (ONE_GPU, 2, EIGHT):
        found = held("zero0", world_size)
        assert found.optimizer / GB == pytest.approx(171.5, abs=0.05)
        assert found.gradients / GB == pytest.approx(57.2, abs=0.05)  # beside those in bf16
        assert (found.weights, found.host, found.whole_gradients) == (0, 0, True)
    in_fp32 = held("zero0", ONE_GPU, "fp32")
    assert in_fp32.optimizer / GB == pytest.approx(114.3, abs=0.05)  # the weights are the masters
    assert in_fp32.gradients == 0


@pytest.mark.parametrize("world_size", [ONE_GPU, 2, EIGHT])
@pytest.mark.parametrize("preset", ["zero1", "zero2", "zero3"])
def test_zero_spreads_masters_and_moments(preset: DeepSpeedPreset, world_size: int) -> None:
    found = held(preset, world_size)
    assert found.optimizer / GB == pytest.approx(171.5 / world_size, abs=0.05)
    assert found.gradients / GB == pytest.approx(57.2 / world_size, abs=0.05)
    assert found.whole_gradients == (preset == "zero1")


@pytest.mark.parametrize("world_size", [ONE_GPU, EIGHT])
def test_zero_3_spreads_the_weights_but_for_a_billion_in_use(world_size: int) -> None:
    network = trained("bf16", full=True).network_bytes / GB
    in_use = network / 14.29
    spread = min(0.0, network / world_size + in_use - network)
    assert held("zero3", world_size).weights / GB == pytest.approx(spread, abs=0.05)
    assert held("zero3_cpuoffload", world_size).weights / GB == pytest.approx(in_use - network, abs=0.05)


@pytest.mark.parametrize("world_size", [ONE_GPU, 2, EIGHT])
def test_offload_moves_all_of_it_to_cpu_memory(world_size: int) -> None:
    two, three = held("zero2_cpuoffload", world_size), held("zero3_cpuoffload", world_size)
    assert (two.optimizer, two.gradients, three.optimizer, three.gradients) == (0, 0, 0, 0)
    assert two.host / GB == pytest.approx(228.6 / world_size, abs=0.05)
    network = trained("bf16", full=True).network_bytes / GB
    assert three.host / GB == pytest.approx((228.6 + network) / world_size, abs=0.05)


def test_a_lora_needs_little_of_all_that() -> None:
    assert held("zero0", ONE_GPU, full=False).optimizer / GB == pytest.approx(153.35e6 * 8 / GB, rel=1e-4)  # it is its own master
    spread = held("zero2", EIGHT, full=False)
    assert (spread.optimizer + spread.gradients) / GB == pytest.approx(153.35e6 * 16 / 8 / GB, rel=1e-4)


def weights_of(**changes: object) -> float:
    parameters = given(**changes)
    step = Step.on_shapes(empty_models(a14b(), parameters, {"dit2", "vae"}), empty_rewards(parameters), parameters)
    return sum(weight.nbytes for network in step.networks() for weight in network.parameters()) / GB


def test_full_training_with_a_kl_keeps_a_frozen_copy() -> None:
    with_kl, without = weights_of(**FULL), weights_of(**FULL, kl_weight=0.0)
    assert with_kl - without == pytest.approx(trained("bf16", full=True).network_bytes / GB, abs=0.01)
    assert weights_of() - without == pytest.approx(153.35e6 * 4 / GB, abs=0.01)  # a LoRA is switched off instead


def test_the_files_to_stage_are_those_of_the_release() -> None:
    estimator, parameters = Estimator(a14b()), given()
    bf16, fp32 = (estimator._staged_bytes(parameters, dit_bytes=size) / GB for size in (2, 4))
    networks = 2 * 28.58 + 11.36 + 0.51
    assert bf16 == pytest.approx(networks + 0.28, abs=0.02)  # and both face networks
    assert fp32 == pytest.approx(bf16 + 2 * 28.58, abs=0.01)
    one = estimator._staged_bytes(given(min_timestep_boundary=1.0, trainable_models="dit", lora_base_model="dit")) / GB
    assert one == pytest.approx(bf16 - 28.58, abs=0.01)
