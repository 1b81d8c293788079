"""Examples in miniature: what they say of training trains on the tiny family; the custom reward as the wheel of its image."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from rewardfl_api.job import RewardFLJob
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.environment import Process
from rewardfl_trainer.train import train
from tests.distributed.conftest import MakeConfig
from tests.unit.own_rewards import importable

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
SIZE = {"num_frames": 9, "height": 64, "width": 64, "max_steps": 2, "gradient_accumulation_steps": 1, "warmup_steps": 0}
NOT_NEEDED = {"eval_rows": 0, "eval_steps": None, "num_sample_videos": 0}


def in_miniature(name: str, make_config: MakeConfig) -> TrainerConfig:
    """The example's job with the tiny family's files, small videos and two steps, on this machine."""
    local = make_config(name=name.removesuffix(".yaml"))
    given = TrainerConfig.from_job(RewardFLJob.parse(yaml.safe_load((EXAMPLES / name).read_text(encoding="utf-8"))))
    files = {key: getattr(local.training, key) for key in ("model_paths", "tokenizer_path", "reward_model_path")}
    # ZeRO 3 puts its own linear layer into torch for the rest of the process; test_training_ranks.py trains with it in others.
    is_zero3 = given.deepspeed["zero_optimization"]["stage"] == 3
    return given.copy_with(
        device="cpu",
        dataset=local.dataset,
        output=local.output,
        work_dir=local.work_dir,
        cache_dir=local.cache_dir,
        progress=None,
        deepspeed=local.deepspeed if is_zero3 else given.deepspeed,
        training=given.training.copy_with(**files, **SIZE, **NOT_NEEDED, learning_rate=1e-3),
    )


def logged(config: TrainerConfig) -> list[dict[str, Any]]:
    lines = (Path(config.output) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def wheel_of_the_reward(tmp_path: Path) -> Iterator[Path]:
    """The example's package as pip would unpack it, on Python's path."""
    sources = tmp_path / "custom_reward"
    for path in (EXAMPLES / "custom_reward").rglob("*"):
        if path.suffix in (".py", ".toml"):
            target = sources / path.relative_to(EXAMPLES / "custom_reward")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-c", BUILD], cwd=sources, check=True, capture_output=True)
    (wheel,) = (sources / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site-packages")
    with importable(tmp_path / "site-packages"):
        yield tmp_path / "site-packages"


def test_the_example_with_a_reward_of_ones_own_trains_towards_it(
    make_config: MakeConfig, process: Process, wheel_of_the_reward: Path
) -> None:
    config = in_miniature("rewardfljob-custom-reward.yaml", make_config)
    train(config, process)
    first, last = logged(config)
    assert Path(sys.modules["my_rewards.exposure"].__file__ or "").is_relative_to(wheel_of_the_reward)
    weights = [1.0, 0.2]
    for line in (first, last):
        scores = [line["reward_face_identity"], line["reward_exposure"]]
        mean = sum(weight * score for weight, score in zip(weights, scores, strict=True)) / sum(weights)
        assert line["reward"] == pytest.approx(mean, abs=1e-4)
        assert 0 < line["reward_exposure"] < 1
        assert line["exposure_brighter_by"] != 0
    assert any(
        bool(weight.any()) for key, weight in load_file(Path(config.output) / "lora.safetensors").items() if "lora_B" in key
    )


def test_the_example_of_full_fine_tuning_trains_every_weight(make_config: MakeConfig, process: Process) -> None:
    config = in_miniature("rewardfljob-full-fine-tuning.yaml", make_config)
    train(config, process)
    trained = load_file(Path(config.output) / "dit2.safetensors")
    low = Path((config.training.model_paths or [])[0]).parent / "Wan2.2-I2V-A14B" / "low_noise_model"
    before = {key: tensor for path in low.glob("*.safetensors") for key, tensor in load_file(path).items()}
    assert trained.keys() == before.keys()
    moved = [key for key, tensor in trained.items() if not tensor.float().equal(before[key].to(tensor.dtype).float())]
    assert len(moved) > 0.9 * len(trained)
    assert logged(config)[-1]["grad_norm"] > 0
