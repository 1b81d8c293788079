"""Every training parameter in one model: the groups of `parameters.py`, and the checks that need several fields.

Each error names the field, the value and the remedy.
"""

from collections.abc import Iterator
from typing import Any, Self, cast

from pydantic import ValidationInfo, field_validator, model_validator

from .contradictions import Contradiction, report
from .parameters import (
    EXPORT_FORMATS,
    KNOWN_EXTRA_INPUTS,
    KNOWN_MODEL_NAMES,
    KNOWN_MODELS,
    CachingParameters,
    ExportFormat,
    ModelParameters,
    OptimizationParameters,
    ReportingParameters,
    RewardParameters,
    RewardSpec,
    SamplingParameters,
    split_names,
)


class TrainingParameters(
    CachingParameters,
    ReportingParameters,
    RewardParameters,
    SamplingParameters,
    ModelParameters,
    OptimizationParameters,
):
    """Every training parameter. In the resource the names are camelCase, in the trainer's configuration snake_case."""

    @field_validator("model_paths", mode="before")
    @classmethod
    def read_model_paths(cls, value: Any) -> Any:
        """Accept ROLL's forms as well: one JSON path, or a list in which the shards of a model are a list."""
        if isinstance(value, str):
            return [value]
        if isinstance(value, list):
            return [",".join(entry) if isinstance(entry, list) else entry for entry in value]
        return value

    @field_validator("model_name")
    @classmethod
    def check_model_name(cls, value: str) -> str:
        """Only families that this trainer has. The CRD takes any name, so that another family needs no new CRD."""
        if value not in KNOWN_MODEL_NAMES:
            raise ValueError(f"model_name={value!r}: unknown; use {' or '.join(KNOWN_MODEL_NAMES)}")
        return value

    @field_validator("trainable_models")
    @classmethod
    def check_trainable_models(cls, value: str) -> str:
        """Only models that exist."""
        return _known(value, KNOWN_MODELS, "trainable_models")

    @field_validator("extra_inputs")
    @classmethod
    def check_extra_inputs(cls, value: str) -> str:
        """Only inputs that exist."""
        return _known(value, KNOWN_EXTRA_INPUTS, "extra_inputs")

    @field_validator("export_formats")
    @classmethod
    def check_export_formats(cls, value: str) -> str:
        """Only layouts that exist, and at least one: a run has to leave its result."""
        if not split_names(value):
            raise ValueError(f"export_formats={value!r}: name at least one of {', '.join(EXPORT_FORMATS)}")
        return _known(value, EXPORT_FORMATS, "export_formats")

    @field_validator("num_frames")
    @classmethod
    def check_num_frames(cls, value: int) -> int:
        """The VAE compresses 4 frames to 1 after the first."""
        if value % 4 != 1:
            low = value - (value - 1) % 4
            raise ValueError(f"num_frames={value}: must be 4k+1 ({low} or {low + 4})")
        return value

    @model_validator(mode="after")
    def check_together(self, info: ValidationInfo) -> Self:
        """Check what needs several fields."""
        report([*self._sampling(), *self._rewards(), *self._trained_models()], info)
        return self

    def _sampling(self) -> Iterator[Contradiction]:
        """The window lies within the denoising steps, and the video has one size."""
        if self.mid_timestep > self.final_timestep:
            yield _found(
                "mid_timestep final_timestep",
                f"mid_timestep={self.mid_timestep}: must not be after final_timestep={self.final_timestep}; "
                "the gradient flows from the first to the second",
            )
        if self.final_timestep >= self.num_inference_steps:
            yield _found(
                "final_timestep num_inference_steps",
                f"final_timestep={self.final_timestep}: there are {self.num_inference_steps} denoising steps, "
                f"counted from 0; use at most {self.num_inference_steps - 1}",
            )
        if self.min_timestep_boundary > self.max_timestep_boundary:
            yield _found(
                "min_timestep_boundary max_timestep_boundary",
                f"min_timestep_boundary={self.min_timestep_boundary}: must not be above "
                f"max_timestep_boundary={self.max_timestep_boundary}",
            )
        if (self.height is None) != (self.width is None):
            missing, given = ("height", "width") if self.height is None else ("width", "height")
            yield _found(f"{missing} {given}", "height and width: give both, or neither and max_pixels")

    def _rewards(self) -> Iterator[Contradiction]:
        """Each reward once, one of them with weight, and one source of evaluation rows."""
        names = [spec.name for spec in self.reward_specs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            yield _found("rewards", f"rewards: {', '.join(twice)} is listed twice; give it once, with the weights added up")
        if not any(spec.weight > 0 for spec in self.reward_specs):
            yield _found("rewards", "rewards: every weight is 0, so there is nothing to learn from; raise one")
        if self.eval_rows and self.eval_dataset:
            yield _found("eval_rows eval_dataset", f"eval_rows={self.eval_rows}: give it or eval_dataset, not both")
        if self.eval_steps and not self.evaluates:
            yield _found(
                "eval_steps eval_rows eval_dataset",
                f"eval_steps={self.eval_steps}: nothing to evaluate; set eval_rows or eval_dataset as well",
            )

    def _trained_models(self) -> Iterator[Contradiction]:
        """There are models, the LoRA's is trained, a second DiT is used, and something is trained at all."""
        names = self.trainable_model_names
        if self.compat == "roll" and self.dtype != "bf16":
            yield _found(
                "dtype compat",
                f"dtype={self.dtype}: with compat=roll it must be bf16, in which ROLL computes; or set compat to none",
            )
        if not self.model_paths and not self.model_id_with_origin_paths:
            yield _found(
                "model_paths model_id_with_origin_paths", "model_paths: give the model files, or model_id_with_origin_paths"
            )
        if not names:
            yield _found("trainable_models", "trainable_models='': name at least one of " + ", ".join(KNOWN_MODELS))
        elif self.lora_base_model is not None and not self.lora_target_names:
            yield _found(
                "lora_target_modules lora_base_model",
                f"lora_target_modules={self.lora_target_modules!r}: name at least one linear layer, e.g. q,k,v,o",
            )
        elif self.lora_base_model is not None and names != [self.lora_base_model]:
            yield _found(
                "trainable_models lora_base_model",
                f"trainable_models={self.trainable_models!r}: with lora_base_model={self.lora_base_model} only its LoRA "
                f"is trained; set trainable_models to {self.lora_base_model}, or leave lora_base_model out for full training",
            )
        if "dit2" in names and self.uses_single_dit:
            yield _found(
                "min_timestep_boundary max_timestep_boundary trainable_models",
                "min_timestep_boundary=1.0: with both boundaries 1 only `dit` denoises and dit2 is never trained; "
                "set min_timestep_boundary to 0.9 for Wan2.2-I2V-A14B, or train dit",
            )

    @property
    def reward_specs(self) -> list[RewardSpec]:
        """The rewards; face_identity where none are given."""
        return self.rewards or [RewardSpec(name="face_identity")]

    @property
    def evaluates(self) -> bool:
        """Whether there are rows for the held-out reward."""
        return bool(self.eval_rows or self.eval_dataset)

    @property
    def trainable_model_names(self) -> list[str]:
        """The names in `trainable_models`."""
        return split_names(self.trainable_models)

    @property
    def extra_input_names(self) -> list[str]:
        """The names in `extra_inputs`."""
        return split_names(self.extra_inputs)

    @property
    def export_format_names(self) -> list[ExportFormat]:
        """The names in `export_formats`."""
        return cast("list[ExportFormat]", split_names(self.export_formats))

    @property
    def lora_target_names(self) -> list[str]:
        """The names in `lora_target_modules`."""
        return split_names(self.lora_target_modules)

    @property
    def lora_scale_numerator(self) -> float:
        """`lora_alpha`, or the rank where it is unset."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def uses_single_dit(self) -> bool:
        """Whether one DiT denoises at every timestep (both boundaries 1)."""
        return self.min_timestep_boundary >= 1.0 and self.max_timestep_boundary >= 1.0


def _found(fields: str, message: str) -> Contradiction:
    return Contradiction(tuple(f"training.{name}" for name in fields.split()), message)


def _known(value: str, known: tuple[str, ...], field: str) -> str:
    """Return `value`, or raise ValueError naming what it may hold."""
    unknown = [name for name in split_names(value) if name not in known]
    if unknown:
        raise ValueError(f"{field}={value!r}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return value
