"""Two ranks with gloo train the tiny family: the same LoRA on both, under every ZeRO stage, and nothing else changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.trainer_config import TrainerConfig
from tests.distributed import training_rank, warm
from tests.distributed.conftest import MakeConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_server")]

ZERO1_OFFLOADED = "zero1, offloaded"
PRESETS = (*get_args(DeepSpeedPreset), ZERO1_OFFLOADED)
"""Every preset, and what is said in a section of its own. DeepSpeed has no offload for ZeRO 0."""
STEPS = 3
HELD_OUT: dict[str, Any] = {"rows": 3, "eval_rows": 1, "eval_noise_seeds": 2}
TIMEOUT_SECONDS = 800


def train(configs: Sequence[TrainerConfig], tmp_path: Path, ranks: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Train on `ranks` ranks; return what each rank wrote, by the configuration's name."""
    paths = [tmp_path / f"{config.name}.yaml" for config in configs]
    for config, path in zip(configs, paths, strict=True):
        path.write_text(config.dump(), encoding="utf-8")
    results = tmp_path / "results"
    results.mkdir(exist_ok=True)
    warm.finish(warm.start_ranks(ranks, training_rank.main, results, paths), TIMEOUT_SECONDS)
    return {
        config.name: [torch.load(results / f"{config.name}-rank{rank}.pt", weights_only=True) for rank in range(ranks)]
        for config in configs
    }


def assert_same_weights(first: dict[str, Any], second: dict[str, Any]) -> None:
    for file, tensors in first["weights"].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, second["weights"][file][name]), name


def section(preset: str) -> dict[str, Any]:
    """Return the preset's section. A toy lies within ZeRO 3's reuse distance as a whole, which it searches quadratically."""
    if preset == ZERO1_OFFLOADED:
        return {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}}, "zero_allow_untested_optimizer": True}
    found = preset_config(preset)  # type: ignore[arg-type]
    if found["zero_optimization"]["stage"] == 3:
        found["zero_optimization"]["stage3_max_reuse_distance"] = 0
    return found


ALL_IN_MEMORY = ("zero2", "zero3")
"""Presets that are run with every network in memory while training; the others compute beforehand what they can."""


@pytest.fixture(scope="module")
def by_preset(
    warm_server: None, make_module_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    configs = [
        make_module_config(
            name=preset,
            deepspeed=section(preset),
            max_steps=STEPS,
            **HELD_OUT,
            cache_conditions=preset not in ALL_IN_MEMORY,
            cache_prefix=preset not in ALL_IN_MEMORY,
        )
        for preset in PRESETS
    ]
    return train(configs, tmp_path_factory.mktemp("presets"))


@pytest.mark.parametrize("preset", PRESETS)
def test_both_ranks_end_with_the_same_lora(by_preset: dict[str, list[dict[str, Any]]], preset: str) -> None:
    first, second = by_preset[preset]
    assert_same_weights(first, second)
    assert first["losses"] != second["losses"], "each rank has samples of its own"
    assert first["applied"] == [True] * STEPS
    assert any(float(tensor.abs().max()) > 0 for name, tensor in first["weights"]["lora"].items() if "lora_B" in name)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_alike(by_preset: dict[str, list[dict[str, Any]]], preset: str) -> None:
    for expected, found in zip(by_preset["zero2"], by_preset[preset], strict=True):
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4, abs=1e-5)
        assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)
        for name, tensor in expected["weights"]["lora"].items():
            torch.testing.assert_close(found["weights"]["lora"][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_rank_knows_the_held_out_reward_and_it_is_the_same_under_every_preset(
    by_preset: dict[str, list[dict[str, Any]]], preset: str
) -> None:
    first, second = by_preset[preset]
    assert first["held_out"] == second["held_out"]
    assert first["held_out"] == pytest.approx(by_preset["zero2"][0]["held_out"], abs=1e-3)
    assert -1 < first["held_out"]["held_out_reward"] < 1


@pytest.mark.parametrize("preset", PRESETS)
def test_models_that_are_not_trained_are_bit_identical_afterwards(
    by_preset: dict[str, list[dict[str, Any]]], preset: str
) -> None:
    networks = ("dit", "dit2", "text_encoder", "vae") if preset in ALL_IN_MEMORY else ("dit2", "vae")
    for found in by_preset[preset]:
        assert found["unchanged"] == dict.fromkeys(networks, True)
        assert min(found["frozen_tensors"].values()) > 10


def test_one_rank_with_accumulation_or_with_a_larger_batch_equals_two_ranks(make_config: MakeConfig, tmp_path: Path) -> None:
    together = train([make_config(name="two", max_steps=2)], tmp_path)["two"][0]
    accumulating = make_config(name="accumulating", max_steps=2, gradient_accumulation_steps=2)
    batched = make_config(name="batched", max_steps=2, per_device_train_batch_size=2)
    alone = train([accumulating, batched], tmp_path, ranks=1)
    for result in (alone["accumulating"][0], alone["batched"][0]):
        assert len(result["losses"]) == 4, "two samples in each of two steps"
        for name, tensor in together["weights"]["lora"].items():
            torch.testing.assert_close(result["weights"]["lora"][name], tensor, rtol=1e-3, atol=1e-5)


FULL = {
    "dit2": {"trainable_models": "dit2"},
    "both-dits": {"trainable_models": "dit,dit2", "mid_timestep": 2},
    "vae": {"trainable_models": "vae"},
    "text-encoder": {"trainable_models": "text_encoder"},
    "dit2-bf16": {"trainable_models": "dit2", "dtype": "bf16"},
    "lora-bf16": {"trainable_models": "dit2", "lora_base_model": "dit2", "dtype": "bf16"},
}


@pytest.fixture(scope="module")
def by_model(
    warm_server: None, make_module_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    configs = [
        make_module_config(name=name, **{"max_steps": 2, "lora_base_model": None, "weight_decay": 0.0, **training})
        for name, training in FULL.items()
    ]
    return train(configs, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", FULL)
def test_what_is_named_is_trained_and_nothing_else(by_model: dict[str, list[dict[str, Any]]], name: str) -> None:
    first, second = by_model[name]
    assert_same_weights(first, second)
    assert first["applied"] == [True, True]
    assert all(first["unchanged"].values())
    named = str(FULL[name]["trainable_models"]).split(",")
    assert {tensor.split(".")[0] for tensor in first["moved"]} == set(named)
    moved = [tensor for tensor, has_moved in first["moved"].items() if has_moved]
    for network in named:
        assert any(tensor.startswith(f"{network}.") for tensor in moved)
    still = [tensor for tensor, has_moved in first["moved"].items() if not has_moved]
    assert len(still) < 0.1 * len(first["moved"]), still


def test_lora_masters_stay_fp32_through_training_in_bf16(by_model: dict[str, list[dict[str, Any]]]) -> None:
    (tensors,) = by_model["lora-bf16"][0]["weights"].values()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    low_bits = torch.cat([(tensor.view(torch.int32) & 0xFFFF).flatten() for tensor in tensors.values()])
    assert float((low_bits != 0).float().mean()) > 0.5, "bf16 would leave the lower half of every number zero"
