"""The training parameters refuse what cannot work, and say what to change."""

import re
from typing import Any

import pytest
from pydantic import ValidationError

from rewardfl_api.training import TrainingParameters

VALID: dict[str, Any] = {
    "model_paths": ["high", "low", "text", "vae"],
    "reward_model_path": "faces/",
    "min_timestep_boundary": 0.9,
}


def parameters(**changes: Any) -> TrainingParameters:
    return TrainingParameters.model_validate({**VALID, **changes})


def test_the_documents_example_is_accepted_by_its_own_names() -> None:
    example = {
        "learning_rate": 2.5e-6,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "warmup_steps": 10,
        "num_train_epochs": 1,
        "model_name": "wan2_2",
        "model_paths": "./examples/wan2.2-14B-reward_fl_ds/wan22_paths.json",
        "reward_model_path": "/data/models/antelopev2/",
        "tokenizer_path": "/data/models/Wan-AI/Wan2.1-T2V-1.3B/google/umt5-xxl/",
        "model_id_with_origin_paths": None,
        "trainable_models": "dit2",
        "use_gradient_checkpointing_offload": True,
        "extra_inputs": "input_image",
        "max_timestep_boundary": 1.0,
        "min_timestep_boundary": 0.9,
        "num_inference_steps": 8,
    }
    read = TrainingParameters.model_validate(example)
    assert read.model_paths == ["./examples/wan2.2-14B-reward_fl_ds/wan22_paths.json"]
    assert read.use_gradient_checkpointing_offload is True


def test_rewards_have_the_defaults_of_their_fields_and_are_face_identity_when_unset() -> None:
    (alone,) = parameters().reward_specs
    assert (alone.name, alone.weight, alone.baseline, alone.scale, alone.options) == ("face_identity", 1, None, None, None)
    camel = parameters(rewards=[{"name": "temporal_consistency", "options": {"cell_pixels": 8}}]).to_kubernetes()
    assert camel["rewards"] == [{"name": "temporal_consistency", "weight": 1, "options": {"cell_pixels": 8}}]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"rewards": [{"name": "face"}]},
            "name='face': unknown; use face_identity, temporal_consistency, or package",
        ),
        ({"rewards": [{"name": "os.path"}]}, "unknown; use"),
        ({"rewards": [{"name": "../evil:Class"}]}, "should match pattern"),
        ({"rewards": [{"name": "face_identity"}] * 2}, "rewards: face_identity is listed twice"),
        ({"rewards": [{"name": "face_identity", "weight": 0}]}, "rewards: every weight is 0"),
        ({"rewards": []}, "at least 1 item"),
        ({"rewards": [{"name": "face_identity", "scale": 0}]}, "greater than 0"),
        ({"rewards": [{"name": "a.b:C", "options": {"text": "x" * 5000}}]}, "5012 characters as JSON; at most 4096"),
        ({"eval_steps": 10}, "eval_steps=10: nothing to evaluate; set eval_rows or eval_dataset as well"),
        ({"eval_rows": 2, "eval_dataset": "s3://bucket/held-out/"}, "eval_rows=2: give it or eval_dataset, not both"),
    ],
)
def test_rewards_and_evaluation_that_cannot_work_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(problem)):
        parameters(**changes)


def test_camel_case_and_snake_case_mean_the_same() -> None:
    camel = parameters().model_dump(by_alias=True)
    assert "learningRate" in camel
    assert TrainingParameters.model_validate(camel) == parameters()


def test_the_shards_of_a_model_may_be_a_list() -> None:
    assert parameters(model_paths=[["a-1", "a-2"], "b", "c", "d"]).model_paths == ["a-1,a-2", "b", "c", "d"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_frames": 80}, "num_frames=80: must be 4k+1 (77 or 81)"),
        ({"mid_timestep": 7, "final_timestep": 4}, "mid_timestep=7: must not be after final_timestep=4"),
        ({"final_timestep": 8}, "final_timestep=8: there are 8 denoising steps, counted from 0; use at most 7"),
        ({"min_timestep_boundary": 1.0, "max_timestep_boundary": 0.9}, "min_timestep_boundary=1.0: must not be above"),
        ({"min_timestep_boundary": 1.0}, "set min_timestep_boundary to 0.9 for Wan2.2-I2V-A14B, or train dit"),
        ({"compat": "roll", "dtype": "fp32"}, "dtype=fp32: with compat=roll it must be bf16"),
        ({"height": 480}, "height and width: give both"),
        ({"trainable_models": "dit3"}, "trainable_models='dit3': unknown dit3; known are dit, dit2, vae, text_encoder"),
        ({"trainable_models": ""}, "trainable_models='': name at least one of"),
        ({"trainable_models": "dit,dit2", "lora_base_model": "dit2"}, "leave lora_base_model out for full training"),
        ({"lora_base_model": "dit2", "lora_target_modules": " "}, "lora_target_modules=' ': name at least one linear layer"),
        ({"extra_inputs": "input_video"}, "extra_inputs='input_video': unknown input_video; known are input_image, end_image"),
        ({"export_formats": "kohya"}, "export_formats='kohya': unknown kohya; known are diffsynth, comfyui, diffusers"),
        ({"export_formats": " "}, "export_formats=' ': name at least one of diffsynth, comfyui, diffusers"),
        ({"model_name": "wan3"}, "model_name='wan3': unknown; use wan2_2"),
        ({"model_paths": None}, "model_paths: give the model files, or model_id_with_origin_paths"),
    ],
)
def test_what_cannot_work_is_refused_with_field_value_and_remedy(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parameters(**changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize("learning_rate", [float("nan"), float("inf"), -1e-6])
def test_a_learning_rate_that_is_no_number_is_refused(learning_rate: float) -> None:
    with pytest.raises(ValidationError, match=r"learningRate|learning_rate"):
        parameters(learning_rate=learning_rate)


def test_a_misspelt_parameter_is_refused_by_its_name() -> None:
    with pytest.raises(ValidationError, match="learning_rat"):
        parameters(learning_rat=1e-6)


def test_every_parameter_says_what_it_means() -> None:
    silent = [name for name, field in TrainingParameters.model_fields.items() if not field.description]
    assert silent == []
