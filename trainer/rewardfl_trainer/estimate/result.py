"""The estimate of a configuration: FLOPs by part, memory of a GPU by part at the worst moment, bytes to stage, seconds a step."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from pathlib import Path
from typing import Any

from rewardfl_api.parameters import VIDEO_MULTIPLE
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from ..engine import ZERO3, deepspeed_section, fitting_buckets
from ..model_files import resolve_model_paths
from ..sampling import Plan
from ..trainable import make_trainable
from ..wan_vae import SPATIAL_FACTOR, latent_frames
from .count import Counts, count_first_phase, count_step
from .engine import EngineBytes, Trained, engine_bytes
from .networks import Architecture, architecture_of, empty_models, empty_rewards
from .step import ACTIVATIONS, DECODE, ENCODE, GRADIENTS, REFERENCE, REWARD, TEXT, WEIGHTS, Video

OPTIMIZER, BUFFERS, CONDITIONS = "optimizer", "buffers", "conditions"

MEMORY_PARTS = {
    WEIGHTS: WEIGHTS,
    GRADIENTS: GRADIENTS,
    ACTIVATIONS: ACTIVATIONS,
    REFERENCE: ACTIVATIONS,
    DECODE: DECODE,
    REWARD: REWARD,
    ENCODE: CONDITIONS,
    TEXT: CONDITIONS,
}
"""The part that each of the tracker's labels is shown in."""

PASSES = {"no_grad": "sample", "forward": "window", "recompute": "recompute", "backward": "backward"}
"""What the transformer's passes are called."""

MOMENTS = {
    (ACTIVATIONS, "forward"): "denoising with gradient",
    (ACTIVATIONS, "no_grad"): "denoising without gradient",
    (ACTIVATIONS, "recompute"): "backward pass through the transformer",
    (ACTIVATIONS, "backward"): "backward pass through the transformer",
    (DECODE, "forward"): "decoding",
    (DECODE, "recompute"): "backward pass through the decoder",
    (DECODE, "backward"): "backward pass through the decoder",
    (REWARD, "forward"): "reward",
    (REWARD, "backward"): "backward pass through the reward",
}
"""What goes on at the worst moment."""

FILE_BYTES = {"vae": 4, "text_encoder": 2}
"""Bytes of a weight in the official files of what is not a DiT (Wan2.1_VAE.pth, models_t5_umt5-xxl-enc-bf16.pth)."""

FACE_FILE_BYTES = 4

DEFAULT_TFLOPS = 400.0
"""What a GPU really computes in a second, in TFLOP: 40 % of an H100's peak in bf16, a usual rate for such models."""


@dataclass(frozen=True)
class Moment:
    """The worst moment of a phase of the run."""

    name: str
    bytes_by_part: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.bytes_by_part.values())


@dataclass(frozen=True)
class Estimate:
    """What a configuration needs. FLOPs are of one sample, bytes of one GPU; GB are 10^9 bytes."""

    models: str
    video: Video
    tokens: int
    """Of the transformer, a denoising step."""
    world_size: int
    zero_stage: int
    samples_per_step: int
    """Of one GPU."""
    trained_parameters: int
    flops: dict[str, float]
    """Of a training sample, by part."""
    first_phase_flops: dict[str, float]
    """Of what is computed once per row and noise before training."""
    peak: Moment
    first_phase_peak: Moment | None
    host_bytes: float
    """CPU memory of a process for activations, optimizer and weights that are kept there."""
    staged_bytes: float
    """Model files, the DiTs in bf16 where their files are not at hand; the dataset's size is not known here."""
    tflops: float = DEFAULT_TFLOPS
    staged_bytes_fp32: float = 0.0
    """The same with the DiTs in fp32, as Wan-AI publishes A14B's (six files of 10 GB each)."""

    @property
    def flops_per_step(self) -> float:
        """FLOPs of an optimizer step on one GPU."""
        return sum(self.flops.values()) * self.samples_per_step

    @property
    def seconds_per_step(self) -> float:
        """Seconds at `tflops`."""
        return self.flops_per_step / (self.tflops * 1e12)

    @property
    def worst(self) -> Moment:
        """The worst moment of the run."""
        first = self.first_phase_peak
        return first if first and first.total > self.peak.total else self.peak

    @property
    def peak_bytes(self) -> float:
        """Bytes of a GPU at that moment."""
        return self.worst.total


@dataclass
class Estimator:
    """Estimates variants of one configuration; what they share is counted once.

    Args:
        architecture: the networks. None: those of the configuration.
    """

    architecture: Architecture
    _counts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, parameters: TrainingParameters) -> "Estimator":
        """Return an estimator of the configuration's own networks."""
        return cls(architecture_of(parameters))

    def estimate(self, config: TrainerConfig, world_size: int, tflops: float = DEFAULT_TFLOPS) -> Estimate:
        """Return the estimate of a configuration on so many GPUs.

        Raises:
            RewardFLError: the parameters contradict each other or the models (exit code 78).
        """
        parameters, video = config.training, video_of(config.training)
        trained = self._trained(parameters)
        section = deepspeed_section(config, world_size, full=parameters.lora_base_model is None)
        section = fitting_buckets(section, trained.numel)
        zero_stage = int(section.get("zero_optimization", {}).get("stage", 0))
        counts, first = self._counted(parameters, video, partitioned=zero_stage == ZERO3)
        engine = engine_bytes(section, trained, world_size)
        samples = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
        return Estimate(
            models=self.architecture.title,
            video=video,
            tokens=latent_frames(video.num_frames) * video.height * video.width // (2 * SPATIAL_FACTOR) ** 2,
            world_size=world_size,
            zero_stage=zero_stage,
            samples_per_step=samples,
            trained_parameters=trained.numel,
            flops=flops_by_part([counts]),
            first_phase_flops=flops_by_part(first),
            peak=worst_moment(counts, engine, trained, accumulates=samples > 1),
            first_phase_peak=max((worst_moment(part, when="before training: ") for part in first), key=_total, default=None),
            host_bytes=counts.host_bytes + engine.host,
            staged_bytes=self._staged_bytes(parameters),
            tflops=tflops,
            staged_bytes_fp32=self._staged_bytes(parameters, dit_bytes=4),
        )

    def _counted(self, parameters: TrainingParameters, video: Video, *, partitioned: bool) -> tuple[Counts, list[Counts]]:
        key = f"{partitioned} {parameters.model_dump_json()}"
        if key not in self._counts:
            if "first" not in self._counts:
                self._counts["first"] = count_first_phase(self.architecture, parameters, video)
            self._counts[key] = count_step(self.architecture, parameters, video, partitioned=partitioned)
        return self._counts[key], self._counts["first"]

    def _trained(self, parameters: TrainingParameters) -> Trained:
        """Return the sizes of what is trained."""
        lora = parameters.lora_base_model, parameters.lora_rank, parameters.lora_target_modules
        key = "trained", parameters.trainable_models, parameters.dtype, lora
        if str(key) not in self._counts:
            names = {*parameters.trainable_model_names, "vae", *Plan.of(parameters).window_experts}
            models = empty_models(self.architecture, parameters, names)
            trainable = make_trainable(models, parameters.copy_with(kl_weight=0), Plan.of(parameters))
            trained = [parameter for _, parameter in trainable.parameters()]
            weights = [parameter for network in trainable.networks.values() for parameter in network.parameters()]
            self._counts[str(key)] = Trained(
                numel=(numel := sum(parameter.numel() for parameter in trained)),
                element_bytes=sum(parameter.nbytes for parameter in trained) / numel,
                network_bytes=sum(parameter.nbytes for parameter in weights),
                network_numel=sum(parameter.numel() for parameter in weights),
            )
        found: Trained = self._counts[str(key)]
        return found

    @cached_property
    def _numel(self) -> dict[str, int]:
        """Weights of each network."""
        return {
            name: sum(weight.numel() for weight in self.architecture.empty(name).parameters())
            for name in self.architecture.builders
        }

    def _staged_bytes(self, parameters: TrainingParameters, dit_bytes: int = 2) -> float:
        """Return the bytes of the model files: measured where they are local, otherwise those of the official files."""
        rewards = [part.reward for part in empty_rewards(parameters).parts.values()]
        faces = sum(parameter.numel() * FACE_FILE_BYTES for reward in rewards for parameter in reward.parameters())
        if parameters.model_paths and not any("://" in path for path in parameters.model_paths):
            files = (file for part in resolve_model_paths(parameters.model_paths) for file in part)
            return faces + _size(files)
        sizes = {name: FILE_BYTES.get(name, dit_bytes) * numel for name, numel in self._numel.items()}
        experts = 1 if parameters.uses_single_dit else 2
        return faces + sum(size * (experts if name == "dit" else 1) for name, size in sizes.items())


def _size(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def video_of(parameters: TrainingParameters) -> Video:
    """Return the largest video that the parameters let through; a square one where only its pixels are bounded."""
    if parameters.height is not None and parameters.width is not None:
        return Video(parameters.num_frames, parameters.height, parameters.width)
    side = isqrt(parameters.max_pixels) // VIDEO_MULTIPLE * VIDEO_MULTIPLE
    return Video(parameters.num_frames, side, side)


def flops_by_part(counts: Iterable[Counts]) -> dict[str, float]:
    """Return FLOPs by the part of the step: the transformer's by pass, the others' as they are."""
    parts: defaultdict[str, float] = defaultdict(float)
    for count in counts:
        for (label, in_pass), value in count.flops.items():
            name = PASSES[in_pass] if label == ACTIVATIONS else CONDITIONS if label in (ENCODE, TEXT) else label
            parts[name] += value
    return dict(parts)


def worst_moment(
    counts: Counts,
    engine: EngineBytes | None = None,
    trained: Trained | None = None,
    *,
    accumulates: bool = False,
    when: str = "",
) -> Moment:
    """Return the moment with the most bytes, together with what DeepSpeed holds all the time.

    Args:
        counts: of the step.
        engine: what DeepSpeed holds.
        trained: sizes of what is trained.
        accumulates: whether gradients of earlier samples are there from the start.
        when: the phase, as the moment's name begins.
    """
    shown = {work: _shown(labels, engine, trained, accumulates) for work, labels in counts.peaks.items()}
    return max((Moment(when + MOMENTS.get(work, work[0]), parts) for work, parts in shown.items()), key=_total)


def _total(moment: Moment) -> float:
    return moment.total


def _shown(labels: dict[str, float], engine: EngineBytes | None, trained: Trained | None, accumulates: bool) -> dict[str, float]:
    """Return a moment's bytes by the parts that people know."""
    parts: defaultdict[str, float] = defaultdict(float)
    for label, size in labels.items():
        parts[MEMORY_PARTS.get(label, BUFFERS)] += size
    if engine is not None and trained is not None:
        whole = trained.numel * trained.element_bytes if accumulates else parts[GRADIENTS]
        parts[GRADIENTS] = (whole if engine.whole_gradients else 0) + engine.gradients
        for name, size in ((WEIGHTS, engine.weights), (OPTIMIZER, engine.optimizer), (BUFFERS, engine.buffers)):
            parts[name] += size
    return {name: float(size) for name, size in parts.items() if size > 0}
