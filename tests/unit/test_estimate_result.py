"""What DeepSpeed adds, which settings fit, and what the preflight says."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch.nn import functional
from typer.testing import CliRunner

from rewardfl_api.cli import app
from rewardfl_api.deepspeed import preset_config
from rewardfl_api.errors import ExitCode, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.engine import fitting_buckets
from rewardfl_trainer.estimate import command
from rewardfl_trainer.estimate.engine import EngineBytes, Trained, engine_bytes
from rewardfl_trainer.estimate.fit import GPU_BYTES, fits, needed_bytes
from rewardfl_trainer.estimate.preflight import compare
from rewardfl_trainer.estimate.result import Estimate, Estimator, Moment
from rewardfl_trainer.estimate.step import Video
from tests.unit.test_estimate_count import VIDEO, family, given

LORA = Trained(numel=1000, element_bytes=4, network_bytes=60_000, network_numel=30_000)


def held(preset: str, world_size: int = 1) -> EngineBytes:
    section = fitting_buckets(preset_config(preset), LORA.numel)  # type: ignore[arg-type]
    return engine_bytes(section, LORA, world_size)


def test_without_zero_the_optimizer_holds_two_moments_and_the_gradients_stay_whole() -> None:
    found = held("zero0", 8)
    assert (found.optimizer, found.buffers, found.weights, found.whole_gradients) == (8000, 0, 0, True)


def test_zero_2_spreads_masters_moments_and_gradients() -> None:
    found = held("zero2", 4)
    assert (found.optimizer, found.gradients, found.buffers) == (3 * 4000 / 4, 4000 / 4, 4000)
    assert not found.whole_gradients


def test_offload_moves_the_optimizer_and_the_gradients_to_the_host() -> None:
    found = held("zero2_cpuoffload")
    assert (found.optimizer, found.gradients, found.host) == (0, 0, 4 * 4000)


def test_zero_3_spreads_the_weights_but_for_those_in_use() -> None:
    section = preset_config("zero3")
    section["zero_optimization"]["stage3_max_live_parameters"] = 3000
    assert engine_bytes(section, LORA, 4).weights == 60_000 / 4 + 6_000 - 60_000
    assert held("zero3", 4).weights == 0  # all of it is in use at once


def test_a_bucket_is_no_larger_than_the_gradients() -> None:
    assert fitting_buckets(preset_config("zero2"), 1000)["zero_optimization"]["reduce_bucket_size"] == 1000
    assert fitting_buckets(preset_config("zero2"), 10**10)["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert "reduce_bucket_size" not in fitting_buckets(preset_config("zero0"), 1000)["zero_optimization"]


def configuration(**changes: object) -> TrainerConfig:
    return TrainerConfig(dataset="/data", output="/results", device="cpu", training=given(**changes))


@dataclass
class Fixed(Estimator):
    """An estimator of made-up sizes: 100 GB, 30 with offload, 20 with ZeRO 3 as well."""

    def estimate(self, config: TrainerConfig, world_size: int, tflops: float = 400.0) -> Estimate:
        size = 100e9
        if config.training.use_gradient_checkpointing_offload:
            stage = config.deepspeed["zero_optimization"]["stage"]
            size = 20e9 if stage == 3 else 30e9
        worst = Moment("decoding", {"weights": size / 2, "decode": size / 2})
        return Estimate("some", Video(9, 64, 64), 1, world_size, 2, 1, 1, {"window": 1e12}, {}, worst, None, 0, 0, tflops)


def test_the_first_settings_that_fit_each_gpu_are_named() -> None:
    found = {fit.gigabytes: fit for fit in fits(Fixed(family(1)), configuration(), 1)}
    assert set(found) == set(GPU_BYTES)
    assert str(found[24].settings) == "deepspeed.preset zero3, use_gradient_checkpointing_offload"
    assert str(found[48].settings) == "deepspeed.preset zero0, use_gradient_checkpointing_offload"
    assert str(found[141].settings) == "deepspeed.preset zero0"


def test_a_run_that_cannot_fit_is_refused_with_the_settings_that_would() -> None:
    with pytest.raises(RewardFLError, match=r"104\.5 GB of GPU memory are needed \(decoding\), and there are 48\.0 GB") as caught:
        compare(Fixed(family(1)), configuration(), 1, 48e9)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    assert caught.value.hint == "These settings fit: deepspeed.preset zero0, use_gradient_checkpointing_offload."


def test_a_run_that_nothing_makes_fit_is_told_what_is_left() -> None:
    with pytest.raises(RewardFLError) as caught:
        compare(Fixed(family(1)), configuration(), 1, 8e9)
    assert "fewer frames or pixels" in caught.value.hint


def test_a_run_that_may_not_fit_is_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        compare(Fixed(family(1)), configuration(), 1, 101e9)
        compare(Fixed(family(1)), configuration(), 1, 120e9)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "use_gradient_checkpointing_offload" in caplog.records[0].message


def test_a_small_family_is_estimated_by_part() -> None:
    config = configuration(num_inference_steps=4, mid_timestep=2, final_timestep=3, height=64, width=64, num_frames=9)
    estimate = Estimator(family(2)).estimate(config, world_size=2)
    assert estimate.video == VIDEO
    assert estimate.tokens == 3 * 4 * 4
    assert set(estimate.flops) == {"sample", "reference", "window", "recompute", "backward", "decode", "reward"} - {"sample"}
    assert estimate.peak.total == pytest.approx(sum(estimate.peak.bytes_by_part.values()))
    assert needed_bytes(estimate) > estimate.peak_bytes >= estimate.peak.total
    assert estimate.seconds_per_step == estimate.flops_per_step / 400e12


def test_under_zero_3_linear_layers_keep_what_deepspeeds_keep_and_otherwise_what_torchs_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configuration(height=64, width=64, num_frames=9, use_gradient_checkpointing=False)
    plain, partitioned = (
        Estimator(family(2)).estimate(config.copy_with(deepspeed=preset_config(preset)), world_size=1)  # type: ignore[arg-type]
        for preset in ("zero2", "zero3")
    )
    kept = [sum(estimate.peak.bytes_by_part[part] for part in ("activations", "reward")) for estimate in (plain, partitioned)]
    assert kept[1] > kept[0]
    monkeypatch.setattr(functional, "linear", zero3_linear_wrap)  # as ZeRO 3 leaves it in a process
    again = Estimator(family(2)).estimate(config.copy_with(deepspeed=preset_config("zero2")), world_size=1)
    assert again.peak == plain.peak
    assert functional.linear is zero3_linear_wrap


def test_the_command_prints_json_of_a_manifest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command.Estimator, "of", lambda _parameters: Fixed(family(1)))
    result = CliRunner().invoke(app, ["estimate", "-f", "examples/rewardfljob-eight-gpus.yaml", "-o", "json"])
    found = json.loads(result.stdout)
    assert found["world_size"] == 8
    assert found["peak_bytes"] == 30e9
    assert [fit["gpu_gigabytes"] for fit in found["fits"]] == [24, 48, 80, 141]
    text = CliRunner().invoke(app, ["estimate", "-f", "examples/rewardfljob-eight-gpus.yaml", "--gpus", "1"]).stdout
    assert "GB in all        30.00  (decoding)" in text
    assert " 24 GB: deepspeed.preset zero3, use_gradient_checkpointing_offload" in text


def test_a_file_that_is_not_there_ends_with_66(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["estimate", "-f", str(tmp_path / "none.yaml")])
    assert result.exit_code == ExitCode.MISSING_INPUT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("kind: RewardFLJob\nspec: {dataset: s3://d, output: s3://o, training: {numFrames: 80}}", "must be 4k+1 (77 or 81)"),
        ("- 1", "neither a RewardFLJob nor a trainer's configuration"),
    ],
)
def test_a_wrong_file_or_field_is_named_and_ends_with_78(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(content)
    result = CliRunner().invoke(app, ["estimate", "-f", str(path)])
    assert result.exit_code == ExitCode.BAD_CONFIGURATION
    assert told in result.stderr
    assert str(path) in result.stderr
    assert "pydantic" not in result.stderr
