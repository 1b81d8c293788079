"""The training parameters: every one of the Reward FL document by its own name, and those that this trainer adds.

The descriptions are the CRD's, the documentation's and the code's at once. Checks that need several fields stand in
`TrainingParameters.check_together`; each error names the field, the value and the remedy.
"""

import json
from typing import Annotated, Any, Literal, Self, cast, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from .base import ApiModel

MAX_STEPS_LIMIT = 10_000_000
"""Upper bound of every counter, so that no arithmetic on them can overflow anywhere."""

VIDEO_MULTIPLE = 16
"""Height and width are multiples of this: 8 (VAE) times 2 (DiT patch)."""

KNOWN_MODEL_NAMES = ("wan2_2",)
KNOWN_MODELS = ("dit", "dit2", "vae", "text_encoder")
KNOWN_EXTRA_INPUTS = ("input_image", "end_image")
KNOWN_REWARDS = ("face_identity", "temporal_consistency")
MAX_OPTIONS_CHARACTERS = 4096
"""Length of a reward's options as JSON."""

ExportFormat = Literal["diffsynth", "comfyui", "diffusers"]
"""A library's layout of a LoRA's keys."""
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

LrSchedulerType = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "warmup_stable_decay",
]

Text = Annotated[str, StringConstraints(max_length=1024)]
PathText = Annotated[str, StringConstraints(max_length=4096)]
Count = Annotated[int, Field(ge=1, le=MAX_STEPS_LIMIT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_STEPS_LIMIT)]


def split_names(text: str | None) -> list[str]:
    """Split a comma-separated parameter into its names, without blanks."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


class OptimizationParameters(ApiModel):
    """How the parameters are updated."""

    learning_rate: Annotated[float, Field(ge=0, le=1)] = 2.5e-6
    """Peak learning rate of AdamW. 0 trains nothing and is useful as a control."""
    lr_scheduler_type: LrSchedulerType = "constant"
    """Learning rate schedule, by the names of transformers. `constant` warms up too when warmup_steps is set."""
    warmup_steps: CountOrZero = 10
    """Optimizer steps over which the learning rate rises linearly from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight decay coefficient of AdamW."""
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the second moment."""
    adam_epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """The gradient's norm is clipped to this. 0 switches clipping off."""
    per_device_train_batch_size: Annotated[int, Field(ge=1, le=1024)] = 1
    """Samples per process and forward pass. All of them are trained on."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=65536)] = 1
    """Forward and backward passes per optimizer step."""
    train_batch_size: Count | None = None
    """Global batch: per_device_train_batch_size * gradient_accumulation_steps * world size. Checked when given."""
    num_train_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Optimization rounds per batch of samples: the same batch is sampled, scored and stepped on this many times in a row."""
    dataset_repeat: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Passes over the dataset, each in a newly shuffled order. max_steps, when given, decides instead."""
    max_steps: Count | None = None
    """Optimizer steps in all. Unset: as many as dataset_repeat passes and num_train_epochs rounds make."""
    max_bad_steps: Annotated[int, Field(ge=1, le=1000)] = 5
    """Steps in a row with a NaN or infinite loss or gradient after which training stops. Each is skipped and counted."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 42
    """Seed of everything random: LoRA initialisation, shuffling, noise."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Compute precision. Trainable weights, their gradients' sum and the optimizer are kept in fp32 in either case."""
    compat: Literal["none", "roll"] = "none"
    """roll: compute the loss as ROLL's Reward FL did, its mistakes included, to compare with it. See docs/algorithm.md."""
    use_gradient_checkpointing: bool = True
    """Recompute activations in the backward pass instead of keeping them."""
    use_gradient_checkpointing_offload: bool = False
    """Keep the checkpointed activations in CPU memory."""
    gradient_checkpointing_blocks: Annotated[int, Field(ge=1, le=256)] | None = None
    """Transformer blocks that share a checkpoint: more keep less of the forward pass and need more in the backward pass. Changes
    no result. Unset: 4, or 2 with use_gradient_checkpointing_offload."""
    gradient_checkpointing_attention: Annotated[int, Field(ge=0, le=256)] | None = None
    """In every so many-th of these checkpoints the outputs of self-attention are kept, not computed again: 1 in all, 0 in none.
    Changes no result. Unset: 4, or 0 with use_gradient_checkpointing_offload."""


class ModelParameters(ApiModel):
    """Which models are loaded, and what of them is trained."""

    model_name: Text = "wan2_2"
    """Model family: wan2_2."""
    model_paths: Annotated[list[PathText], Field(max_length=64)] | None = None
    """High-noise DiT, low-noise DiT, text encoder and VAE: one entry each (file, directory, pattern, or comma-separated
    shards; a path or an s3://, hf:// or ms:// URI), or a single entry naming a JSON file that lists them (wan22_paths.json)."""
    model_id_with_origin_paths: PathText | None = None
    """Hub models, comma separated `id:pattern`, e.g. Wan-AI/Wan2.2-I2V-A14B:Wan2.1_VAE.pth. Added to model_paths."""
    tokenizer_path: PathText = ""
    """Folder of the umT5 tokenizer. Empty: fetched from Wan-AI/Wan2.1-T2V-1.3B on the hub."""
    reward_model_path: Annotated[PathText, Field(min_length=1)]
    """Folder with antelopev2's scrfd_10g_bnkps.onnx and glintr100.onnx."""
    trainable_models: Text = "dit2"
    """Models to train, comma separated: dit, dit2, vae, text_encoder."""
    lora_base_model: Literal["dit", "dit2"] | None = None
    """Model that gets the LoRA, usually dit2. Unset: all parameters of trainable_models are trained."""
    lora_target_modules: Text = "q,k,v,o,ffn.0,ffn.2"
    """Linear layers that get a LoRA, comma separated, matched by the end of their name."""
    lora_rank: Annotated[int, Field(ge=1, le=4096)] = 32
    """Rank of the LoRA."""
    lora_alpha: Annotated[float, Field(gt=0, le=65536)] | None = None
    """Scale of the LoRA; its product is multiplied by lora_alpha / lora_rank. Unset: lora_rank."""


class SamplingParameters(ApiModel):
    """What is generated, and through which denoising steps the gradient flows."""

    extra_inputs: Text = "input_image"
    """Conditions taken from the video, comma separated: input_image (first frame), end_image (last frame)."""
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = 8
    """Denoising steps. 8 for the distilled Wan2.2."""
    sigma_shift: Annotated[float, Field(gt=0, le=100)] = 5.0
    """Shift of the flow-matching schedule: sigma = shift * u / (1 + (shift - 1) * u)."""
    mid_timestep: Annotated[int, Field(ge=0, le=999)] = 4
    """First denoising step (counted from 0) that carries gradient."""
    final_timestep: Annotated[int, Field(ge=0, le=999)] = 7
    """Last denoising step that carries gradient. Later steps run without gradient before the video is decoded."""
    max_timestep_boundary: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Upper end of the interval of t/1000 in which the high-noise DiT denoises."""
    min_timestep_boundary: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Lower end of that interval: 0.9 for Wan2.2-I2V-A14B. 1, with an upper end of 1, means a single DiT (`dit`)."""
    noise_seeds_per_sample: Annotated[int, Field(ge=1, le=4096)] = 1
    """Different noises that each dataset row is trained with, taken in turn."""
    num_frames: Annotated[int, Field(ge=5, le=1025)] = 81
    """Frames per video, 4k + 1. Longer videos are cut, shorter ones are refused."""
    max_pixels: Annotated[int, Field(ge=VIDEO_MULTIPLE**2, le=2**26)] = 480 * 480
    """Videos are scaled down to at most this many pixels, keeping their aspect, to multiples of 16."""
    height: Annotated[int, Field(ge=VIDEO_MULTIPLE, le=8192, multiple_of=VIDEO_MULTIPLE)] | None = None
    """Fixed height, with `width`, instead of max_pixels. A multiple of 16."""
    width: Annotated[int, Field(ge=VIDEO_MULTIPLE, le=8192, multiple_of=VIDEO_MULTIPLE)] | None = None
    """Fixed width, with `height`, instead of max_pixels. A multiple of 16."""


class RewardSpec(ApiModel):
    """One of the rewards that are added up: (score - baseline) / scale * weight."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?$", max_length=256)]
    """face_identity, temporal_consistency, or a class that the trainer image can import, as package.module:Class."""
    weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Weight in the sum. 0: scored and logged, without gradient."""
    baseline: Annotated[float, Field(ge=-1e6, le=1e6)] | None = None
    """Score at which its term is zero. Unset: rewardBaseline."""
    scale: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Spread of its score that counts as one unit of reward. Unset: rewardScale."""
    options: (
        Annotated[dict[str, Any], Field(max_length=32, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] | None
    ) = None
    """What its class takes, by name; at most 4096 characters as JSON. See docs/rewards.md."""

    @field_validator("name")
    @classmethod
    def check_name(cls, value: str) -> str:
        """A reward of this trainer, or an import path. The CRD takes any name, so that another reward needs no new CRD."""
        if ":" not in value and value not in KNOWN_REWARDS:
            raise ValueError(f"name={value!r}: unknown; use {', '.join(KNOWN_REWARDS)}, or package.module:Class")
        return value

    @field_validator("options")
    @classmethod
    def check_options(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """Options stay small."""
        if value is not None and (length := len(json.dumps(value))) > MAX_OPTIONS_CHARACTERS:
            raise ValueError(f"options: {length} characters as JSON; at most {MAX_OPTIONS_CHARACTERS} are allowed")
        return value


class RewardParameters(ApiModel):
    """The objective: loss = -(sum of (score - baseline) / scale * weight over the rewards) * reward_weight + kl_weight * KL."""

    rewards: (
        Annotated[
            list[RewardSpec],
            Field(
                min_length=1,
                max_length=8,
                json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            ),
        ]
        | None
    ) = None
    """The rewards that are added up. Unset: face_identity alone, with weight 1."""
    reward_baseline: Annotated[float, Field(ge=-10, le=10)] = 0.54
    """Score at which the reward term is zero."""
    reward_scale: Annotated[float, Field(gt=0, le=1000)] = 0.16
    """Spread of the score that counts as one unit of reward."""
    reward_weight: Annotated[float, Field(ge=0, le=1e6)] = 0.1
    """Weight of the reward term, which is the sum over all rewards."""
    kl_weight: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    """Weight of the KL term that holds the trained model near the untrained one."""
    kl_steps: Literal["all", "sampled"] = "all"
    """Gradient steps on which the KL is computed: all of them, or one drawn uniformly (unbiased, cheaper)."""
    face_channel_order: Literal["rgb", "bgr"] = "rgb"
    """Channel order fed to the recogniser. antelopev2's glintr100 takes RGB; bgr reproduces ROLL."""
    missing_face_penalty: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Score with which a generated frame without a face counts, so that hiding the face never pays."""
    on_missing_face: Literal["fail", "skip"] = "fail"
    """What the preflight does with a dataset row that has no face in its first frame."""


class CachingParameters(ApiModel):
    """What is computed once, before training, and kept in the cache for this run and later ones."""

    cache_conditions: bool = True
    """Encode prompts and images once; umT5 and the VAE's encoder are then not in memory while training. Has no effect where one
    of these networks is trained."""
    cache_references: bool = True
    """Compute what the reward needs of the ground-truth videos (their faces) once."""
    cache_prefix: bool = True
    """Make the leading denoising steps that nothing trained takes part in once for each row and noise; the high-noise DiT is then
    not in memory while training."""


class ReportingParameters(ApiModel):
    """What is written, and how often."""

    logging_steps: Count = 1
    """Optimizer steps between two lines of metrics."""
    save_steps: Count = 25
    """Optimizer steps between two checkpoints."""
    save_total_limit: Annotated[int, Field(ge=1, le=1000)] = 2
    """Checkpoints kept, in the output folder and on the local disk. An older one is deleted when a newer one is uploaded."""
    num_sample_videos: Annotated[int, Field(ge=0, le=64)] = 1
    """Dataset rows of which a video is generated before and after training, with the same noise."""
    eval_rows: Annotated[int, Field(ge=0, le=4096)] = 0
    """The last so many usable rows of the dataset are never trained on; their videos give the held-out reward."""
    eval_dataset: PathText | None = None
    """Folder like `dataset`, none of whose rows is trained on; their videos give the held-out reward. Instead of eval_rows."""
    eval_steps: Count | None = None
    """Optimizer steps between two measurements of the held-out reward. Unset: only before and after training."""
    eval_noise_seeds: Annotated[int, Field(ge=1, le=64)] = 1
    """Videos of each evaluation row, with as many noises, none of which is trained with."""
    export_formats: Text = "diffsynth,comfyui,diffusers"
    """Key layouts that the trained LoRA is written in at the end, comma separated: diffsynth (lora.safetensors), comfyui
    (lora-comfyui.safetensors), diffusers (lora-diffusers.safetensors)."""


class TrainingParameters(
    CachingParameters, ReportingParameters, RewardParameters, SamplingParameters, ModelParameters, OptimizationParameters
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
    def check_together(self) -> Self:
        """Check what needs several fields."""
        if self.mid_timestep > self.final_timestep:
            raise ValueError(
                f"mid_timestep={self.mid_timestep}: must not be after final_timestep={self.final_timestep}; "
                "the gradient flows from the first to the second"
            )
        if self.final_timestep >= self.num_inference_steps:
            raise ValueError(
                f"final_timestep={self.final_timestep}: there are {self.num_inference_steps} denoising steps, "
                f"counted from 0; use at most {self.num_inference_steps - 1}"
            )
        if self.min_timestep_boundary > self.max_timestep_boundary:
            raise ValueError(
                f"min_timestep_boundary={self.min_timestep_boundary}: must not be above "
                f"max_timestep_boundary={self.max_timestep_boundary}"
            )
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width: give both, or neither and max_pixels")
        if self.compat == "roll" and self.dtype != "bf16":
            raise ValueError(
                f"dtype={self.dtype}: with compat=roll it must be bf16, in which ROLL computes; or set compat to none"
            )
        if not self.model_paths and not self.model_id_with_origin_paths:
            raise ValueError("model_paths: give the model files, or model_id_with_origin_paths")
        self._check_rewards()
        self._check_trained_models()
        return self

    def _check_rewards(self) -> None:
        """Each reward once, one of them with weight, and one source of evaluation rows."""
        names = [spec.name for spec in self.reward_specs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rewards: {', '.join(twice)} is listed twice; give it once, with the weights added up")
        if not any(spec.weight > 0 for spec in self.reward_specs):
            raise ValueError("rewards: every weight is 0, so there is nothing to learn from; raise one")
        if self.eval_rows and self.eval_dataset:
            raise ValueError(f"eval_rows={self.eval_rows}: give it or eval_dataset, not both")
        if self.eval_steps and not self.evaluates:
            raise ValueError(f"eval_steps={self.eval_steps}: nothing to evaluate; set eval_rows or eval_dataset as well")

    def _check_trained_models(self) -> None:
        """The LoRA's model is trained, a second DiT is used, and something is trained at all."""
        names = self.trainable_model_names
        if not names:
            raise ValueError("trainable_models='': name at least one of " + ", ".join(KNOWN_MODELS))
        if self.lora_base_model is not None and names != [self.lora_base_model]:
            raise ValueError(
                f"trainable_models={self.trainable_models!r}: with lora_base_model={self.lora_base_model} only its LoRA "
                f"is trained; set trainable_models to {self.lora_base_model}, or leave lora_base_model out for full training"
            )
        if "dit2" in names and self.uses_single_dit:
            raise ValueError(
                "min_timestep_boundary=1.0: with both boundaries 1 only `dit` denoises and dit2 is never trained; "
                "set min_timestep_boundary to 0.9 for Wan2.2-I2V-A14B, or train dit"
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


def _known(value: str, known: tuple[str, ...], field: str) -> str:
    """Return `value`, or raise ValueError naming what it may hold."""
    unknown = [name for name in split_names(value) if name not in known]
    if unknown:
        raise ValueError(f"{field}={value!r}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return value
