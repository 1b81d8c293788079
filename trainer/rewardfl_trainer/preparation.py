"""The one place that answers, for a dataset row: its condition, what the reward knows of its ground truth, and where the
generation of one of its noises starts.

What stays the same during a run is taken from disk (`precompute/`), or computed and kept there; the rest, and what is switched
off, is computed on every use. Training, samples and evaluation ask here and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

from .compat import Conventions
from .conditioning import Condition, Conditioner
from .data import Row, VideoDataset
from .models import NotLoadedError
from .noise import fixed_noise, sample_noise
from .precompute.keys import Keys
from .precompute.phases import CONDITION_NETWORKS, Phases
from .precompute.store import Key, Store
from .rewards.composition import References, Rewards
from .wan_vae import latent_shape

Purpose = Literal["train", "sample"]

Leading = Callable[[Condition, Tensor], Tensor]
"""Makes the leading denoising steps: condition and noise to latents."""


@dataclass(frozen=True)
class Prepared:
    """A row, ready to be trained on."""

    position: int
    """Position in the dataset."""
    row: Row
    video_3THW: Tensor | None
    """The ground truth, where the condition has to be computed anew, with gradient, on every use; else None."""
    condition: Condition | None
    """None in just that case."""
    reference: References


@dataclass(frozen=True)
class Start:
    """Where the generation of a video starts."""

    condition: Condition
    latents_BCthw: Tensor
    """Noise, or what the steps before `first_step` made of it; in the compute type."""
    first_step: int


@dataclass(frozen=True)
class Kept:
    """What is kept on disk, and where.

    Attributes:
        sizes: (height, width) at which each row of the dataset is trained.
    """

    store: Store
    keys: Keys
    phases: Phases
    sizes: Sequence[tuple[int, int]]


class Preparer:
    """Prepares rows of a dataset.

    Args:
        dataset: the rows and their videos.
        conditioner: makes conditions; None where they are all kept already.
        reward: computes what it needs to know of the ground truth.
        parameters: the training parameters.
        device: where the results are wanted.
        kept: what is kept on disk; None: nothing is.
        leading: makes the leading steps; None where their results are all kept already.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        conditioner: Conditioner | None,
        reward: Rewards,
        parameters: TrainingParameters,
        device: torch.device,
        kept: Kept | None = None,
        leading: Leading | None = None,
    ) -> None:
        self.dataset, self.conditioner, self.reward = dataset, conditioner, reward
        self.parameters, self.device, self.kept, self.leading = parameters, device, kept, leading
        self.fixed_noise_seed = Conventions.of(parameters).fixed_noise_seed
        self.trains_condition = not set(CONDITION_NETWORKS).isdisjoint(parameters.trainable_model_names)
        self._last_video: tuple[int, Tensor] | None = None

    def __call__(self, position: int) -> Prepared:
        """Return the row at `position` of the dataset, prepared, on the device."""
        row = self.dataset.rows[position]
        video_3THW = self.video(position) if self.trains_condition else None
        condition = None if self.trains_condition else self.condition(position)
        prepared = Prepared(position, row, video_3THW, condition, self.reference(position))
        self._last_video = None
        return prepared

    @torch.no_grad()
    def condition(self, position: int) -> Condition:
        """Return the condition of a row with the networks as they are now, without gradient."""
        if self.kept is None or not self.kept.phases.keeps_conditions:
            return self._make_condition(position)
        tensors = self._get(self.kept, self.condition_key(position), lambda: _packed(self._make_condition(position)))
        return Condition(tensors["context_BLD"], tensors.get("image_BCthw"), self._latent_shape(self.kept, position))

    @torch.no_grad()
    def reference(self, position: int) -> References:
        """Return what the reward knows of a row's ground truth."""
        if self.kept is None or not self.kept.phases.keeps_references:
            return self._make_reference(position)
        key = self.reference_key(position)
        return self.reward.unpacked(self._get(self.kept, key, lambda: self._make_reference(position).tensors()))

    @torch.no_grad()
    def start(self, position: int, draw: int, *, purpose: Purpose = "train", condition: Condition | None = None) -> Start:
        """Return where the generation of a row starts with one of its noises.

        Args:
            position: the row.
            draw: which of its noises.
            purpose: sample videos get noises that are never trained with.
            condition: the row's condition, where it is known already.
        """
        condition = condition or self.condition(position)
        if self.kept is None or not self.kept.phases.prefix_steps:
            noise_BCthw = self._noise(condition.latent_shape, position, draw, purpose)
            return Start(condition, noise_BCthw.to(condition.context_BLD), 0)
        key = self.prefix_key(position, draw, purpose)
        tensors = self._get(self.kept, key, lambda: self._make_prefix(condition, position, draw, purpose))
        return Start(condition, tensors["latents_BCthw"], self.kept.phases.prefix_steps)

    def condition_key(self, position: int) -> Key:
        """Name the entry of a row's condition."""
        kept = self._keeping()
        return kept.keys.condition(self.dataset.rows[position], kept.sizes[position])

    def reference_key(self, position: int) -> Key:
        """Name the entry of a row's reference."""
        kept = self._keeping()
        return kept.keys.reference(self.dataset.rows[position], kept.sizes[position])

    def prefix_key(self, position: int, draw: int, purpose: Purpose) -> Key:
        """Name the entry of the latents that one of a row's noises becomes."""
        kept = self._keeping()
        noise_BCthw = self._noise(self._latent_shape(kept, position), position, draw, purpose)
        return kept.keys.prefix(self.dataset.rows[position], kept.sizes[position], noise_BCthw)

    def video(self, position: int) -> Tensor:
        """Return the ground truth of a row, 3THW on the device. The last one is remembered."""
        if self._last_video is None or self._last_video[0] != position:
            self._last_video = None
            self._last_video = position, self.dataset[position].video_3THW.to(self.device)
        return self._last_video[1]

    def _noise(self, shape: tuple[int, ...], position: int, draw: int, purpose: Purpose) -> Tensor:
        """Return one of a row's noises, fp32 on the CPU."""
        if self.fixed_noise_seed is not None and purpose == "train":
            return fixed_noise(shape, self.fixed_noise_seed, self.device).cpu()
        row = self.dataset.rows[position]
        return sample_noise(shape, seed=self.parameters.seed, row=row.index, draw=draw, purpose=purpose)

    def _latent_shape(self, kept: Kept, position: int) -> tuple[int, int, int, int, int]:
        return latent_shape(self.parameters.num_frames, *kept.sizes[position])

    def _make_condition(self, position: int) -> Condition:
        if self.conditioner is None:
            raise NotLoadedError("the conditioner")
        return self.conditioner(self.dataset.rows[position].prompt, self.video(position))

    def _make_reference(self, position: int) -> References:
        return self.reward.reference(self.video(position)[None])

    def _make_prefix(self, condition: Condition, position: int, draw: int, purpose: Purpose) -> dict[str, Tensor]:
        if self.leading is None:
            raise NotLoadedError("the DiT of the leading steps")
        noise_BCthw = self._noise(condition.latent_shape, position, draw, purpose)
        return {"latents_BCthw": self.leading(condition, noise_BCthw.to(condition.context_BLD))}

    def _keeping(self) -> Kept:
        if self.kept is None:
            raise ValueError("this preparer keeps nothing")
        return self.kept

    def _get(self, kept: Kept, key: Key, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors of an entry on the device: kept, or made and kept.

        Raises:
            RewardFLError: it is gone or damaged, and its networks are not in memory any more (IoFailed, exit code 74).
        """
        tensors = kept.store.read(key)
        if tensors is None:
            try:
                tensors = make()
            except NotLoadedError as error:
                raise _gone(kept.store, key) from error
            kept.store.write(key, tensors)
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def _packed(value: object) -> dict[str, Tensor]:
    """Return the tensors of a dataclass by their names."""
    values = {part.name: getattr(value, part.name) for part in fields(value)}  # type: ignore[arg-type] # a dataclass
    return {name: tensor for name, tensor in values.items() if isinstance(tensor, Tensor)}


def _gone(store: Store, key: Key) -> RewardFLError:
    """Return the error of an entry that vanished while training."""
    return RewardFLError(
        Reason.IO_FAILED,
        f"{store.path(key)}: what was computed before training is gone or damaged, and its networks are not in memory any more.",
        "It is made again when the job starts again; leave the cache alone while a job runs, and check its volume.",
        ExitCode.IO_ERROR,
    )
