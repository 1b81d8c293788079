"""ROLL's own configuration, converted, trains a step on the tiny family and leaves a LoRA that other libraries read."""

from pathlib import Path

import pytest
import torch
import yaml
from diffsynth.utils.lora.general import GeneralLoRALoader
from safetensors.torch import load_file

from rewardfl_api import roll
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.environment import Process
from rewardfl_trainer.merge import merge
from rewardfl_trainer.train import train
from tests.distributed.conftest import MakeConfig
from tests.unit.roll_example import ROLL_EXAMPLE

pytestmark = pytest.mark.slow


def on_the_tiny_family(local: TrainerConfig) -> str:
    """Return ROLL's configuration with the paths, the size and the number of devices of a local run."""
    content = yaml.safe_load(ROLL_EXAMPLE)
    training = local.training
    content |= {"max_steps": 1, "train_batch_size": 1}
    content["actor_train"]["device_mapping"] = "[0]"
    content["actor_train"]["model_args"]["model_config_kwargs"] |= {
        "model_paths": (training.model_paths or [])[0],
        "reward_model_path": training.reward_model_path,
        "tokenizer_path": training.tokenizer_path,
        "lora_rank": 4,
        "num_frames": 9,
    }
    content["actor_train"]["training_args"] |= {"learning_rate": 1e-3, "warmup_steps": 0}
    content["actor_train"]["data_args"]["file_name"] = f"{local.dataset}/metadata.csv"
    return yaml.safe_dump(content)


def test_rolls_configuration_trains_a_step(make_config: MakeConfig, process: Process, tmp_path: Path) -> None:
    local = make_config()
    job = roll.convert(on_the_tiny_family(local)).job
    assert job.spec.dataset == local.dataset
    given = TrainerConfig.from_job(job)
    config = given.copy_with(device="cpu", output=local.output, work_dir=local.work_dir, cache_dir=local.cache_dir, progress=None)

    train(config, process)

    output = Path(local.output)
    lora = load_file(output / "lora.safetensors")
    assert any(bool(tensor.any()) for key, tensor in lora.items() if ".lora_B." in key)
    for name in ("lora-comfyui", "lora-diffusers"):
        assert len(load_file(output / f"{name}.safetensors")) >= len(lora)
    assert (output / "checkpoints" / "step-1" / "manifest.json").is_file()
    low = Path((config.training.model_paths or [])[0]).parent / "Wan2.2-I2V-A14B" / "low_noise_model"
    merged = merge(output / "lora.safetensors", str(low), tmp_path / "low.safetensors")
    base = {key: tensor for path in low.glob("*.safetensors") for key, tensor in load_file(path).items()}
    expected = GeneralLoRALoader().convert_state_dict(lora)
    key = "blocks.0.ffn.0"
    change = expected[f"{key}.lora_B.weight"] @ expected[f"{key}.lora_A.weight"]
    weight = base[f"{key}.weight"]
    assert torch.equal(load_file(merged.files[0])[f"{key}.weight"], (weight.float() + change).to(weight.dtype))
