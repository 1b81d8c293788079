"""The training parameters in groups: each field with its meaning, range and default; the document's by its own name.

The descriptions are the CRD's, the documentation's and the code's at once. What needs several fields is checked in `training.py`.
"""

import json
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StringConstraints, field_validator

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
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
    "greedy",
]
"""Every name of transformers' SchedulerType."""

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
    """Learning rate schedule, by the names of transformers; each begins with warmup_steps, constant too. reduce_lr_on_plateau
    lowers the rate when the loss stops falling; greedy raises it again as well, between a tenth of learning_rate and itself."""
    warmup_steps: CountOrZero = 10
    """Optimizer steps over which the learning rate rises linearly from 0 (of cosine_warmup_with_min_lr, from a part)."""
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
    """Checkpoints kept, in the output folder and on the local disk. An older one is deleted when a newer one is uploaded.
    The one with the best held-out reward is kept beside them."""
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
