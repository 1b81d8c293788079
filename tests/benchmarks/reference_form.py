"""A training step in the straightforward form, as ROLL's Reward FL has it: what the trainer is measured against.

Everything is computed again in every step: prompt, both encodings of the video, the faces of every real frame. All eight
denoising steps are made; the decoder runs on overlapping tiles, each one checkpoint; faces are found and cropped one frame at a
time, the crop by warping the whole frame. The objective is the trainer's own, so that both forms compute the same thing.

Legend: B batch, C channels, t h w latents, T frames, H W pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from rewardfl_trainer.compat import Tiles
from rewardfl_trainer.conditioning import Condition, Conditioner
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.models import DTYPES
from rewardfl_trainer.noise import sample_noise
from rewardfl_trainer.rewards.alignment import CROP_SIZE, similarity_to_template
from rewardfl_trainer.rewards.face import FaceReward
from rewardfl_trainer.run import Run
from rewardfl_trainer.sampling import euler_step, kl_term
from rewardfl_trainer.timing import Stopwatch
from rewardfl_trainer.wan_dit import predict_velocity
from rewardfl_trainer.wan_vae import encode

SHARE_OF_TILE, SHARE_OF_STRIDE = (34 / 60, 34 / 60), (18 / 60, 16 / 60)
"""ROLL's tiles of 34x34 latents with strides of 18 and 16, on the 60x60 latents of a 480x480 video."""


def tiles_for(height: int, width: int) -> Tiles:
    """Return tiles that cut latents of this size as ROLL's cut those of a 480x480 video: nine of them."""
    sizes = (round(height * SHARE_OF_TILE[0]), round(width * SHARE_OF_TILE[1]))
    strides = (round(height * SHARE_OF_STRIDE[0]), round(width * SHARE_OF_STRIDE[1]))
    return Tiles(size=sizes, stride=strides)


@dataclass
class ReferenceForm:
    """The straightforward form over the networks of a run, both experts, the text encoder and the VAE resident."""

    run: Run
    reward: FaceReward
    stopwatch: Stopwatch

    @classmethod
    def of(cls, run: Run) -> "ReferenceForm":
        """Return the form over a run that keeps nothing."""
        reward = FaceReward.load(Path(run.config.training.reward_model_path))
        return cls(run, reward, run.stopwatch)

    def loss(self, position: int) -> Tensor:
        """Return the loss of a row with its gradient."""
        with self.stopwatch.part("prepare"):
            condition, truth_3THW = self._condition(position)
            references, counted = self._faces(truth_3THW)
            counted[0] = False  # the condition itself
        latents_BCthw, kl = self._denoise(condition, position)
        with self.stopwatch.part("decode"):
            video_B3THW = self._decode(latents_BCthw)
        with self.stopwatch.part("reward"):
            score = self._score(video_B3THW[0], references, counted)
            return self.run.feedback.objective.loss(score, kl)

    @torch.no_grad()
    def _condition(self, position: int) -> tuple[Condition, Tensor]:
        """Encode the prompt, the first frame, and the whole video, as the reference's pipeline does on every step."""
        models, parameters = self.run.feedback.rollout.models, self.run.config.training
        sample = self.run.preparer.dataset[position]
        conditioner = Conditioner(models, parameters.extra_input_names, DTYPES[parameters.dtype], self.run.process.device)
        encode(models.vae, sample.video_3THW[None])
        return conditioner(sample.row.prompt, sample.video_3THW), sample.video_3THW

    def _denoise(self, condition: Condition, position: int) -> tuple[Tensor, Tensor]:
        """Make every step; return the latents and the KL."""
        rollout, plan = self.run.feedback.rollout, self.run.feedback.rollout.plan
        checkpointing = Checkpointing(enabled=self.run.config.training.use_gradient_checkpointing)
        row = self.run.preparer.dataset.rows[position].index
        latents = sample_noise(condition.latent_shape, seed=self.run.config.training.seed, row=row, draw=0)
        terms = []
        for step in range(len(plan.schedule)):
            dit: Any = rollout.models.network(plan.experts[step])
            inputs = (latents, plan.schedule.timestep(step), condition.context_BLD, condition.image_BCthw, checkpointing)
            trained = step in plan.window
            with self.stopwatch.part("sample"), torch.set_grad_enabled(trained):
                velocity = predict_velocity(dit, *inputs)
            if trained:
                with self.stopwatch.part("reference"), torch.no_grad(), self.run.trainable.untrained():
                    untrained = predict_velocity(dit, *inputs)
                terms.append(kl_term(velocity, untrained, plan.schedule.sigmas[step]))
            latents = euler_step(latents, velocity, plan.schedule.sigmas[step], plan.schedule.sigmas[step + 1])
        return latents, torch.stack(terms).mean()

    def _decode(self, latents_BCthw: Tensor) -> Tensor:
        """Decode every tile within one checkpoint, and blend."""
        vae = self.run.feedback.rollout.models.vae
        mean, inverse_std = (values.to(latents_BCthw).view(1, -1, 1, 1, 1) for values in vae.scale)
        height, width = latents_BCthw.shape[-2:]
        tiles = tiles_for(height, width)
        video: Tensor | None = None
        weight = torch.zeros(height * 8, width * 8)
        for top in _starts(height, tiles.size[0], tiles.stride[0]):
            for left in _starts(width, tiles.size[1], tiles.stride[1]):
                tile = latents_BCthw[..., top : top + tiles.size[0], left : left + tiles.size[1]] / inverse_std + mean
                decoded = checkpoint(self._decode_tile, tile, use_reentrant=False)
                mask = _mask(decoded, top, left, height, width, tiles)
                placed = functional.pad(
                    decoded * mask,
                    (left * 8, width * 8 - left * 8 - mask.shape[1], top * 8, height * 8 - top * 8 - mask.shape[0]),
                )
                video = placed if video is None else video + placed
                weight[top * 8 : top * 8 + mask.shape[0], left * 8 : left * 8 + mask.shape[1]] += mask
        assert video is not None
        return (video / weight).clamp(-1, 1)

    def _decode_tile(self, latents_BCthw: Tensor) -> Tensor:
        model = self.run.feedback.rollout.models.vae.model
        model.clear_cache()
        cache, frames = list(model._feat_map), []
        for features in torch.split(model.conv2(latents_BCthw), 1, dim=2):
            frame, cache, _ = model.decoder(features, feat_cache=cache, feat_idx=[0])
            frames.append(frame)
        return torch.cat(frames, dim=2)

    def _score(self, video_3THW: Tensor, references: Tensor, counted: Tensor) -> Tensor:
        """Return the mean over the frames of the mean cosine similarity to the counted references; a faceless frame counts 0."""
        generated, found = self._faces(video_3THW)
        cosine = functional.cosine_similarity(generated[:, None], references[None], dim=-1)
        return torch.where(found, cosine[:, counted].mean(dim=1), 0).mean()

    def _faces(self, video_3THW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding of each frame's largest face (zero without one), one frame after the other; and which count."""
        embeddings, found = [], []
        for frame_3HW in video_3THW.unbind(1):
            with torch.no_grad():
                faces = self.reward.detector(frame_3HW[None].detach())
            has_face = bool(faces.found_F[0])
            found.append(has_face)
            if not has_face:
                embeddings.append(frame_3HW.new_zeros(512))
                continue
            matrix_23 = similarity_to_template(faces.keypoints_F52)[0][0]
            embeddings.append(self.reward.recogniser(_warp(frame_3HW, matrix_23)[None])[0])
        counted = torch.tensor(found)
        return torch.stack(embeddings), counted


def _warp(frame_3HW: Tensor, matrix_23: Tensor) -> Tensor:
    """Warp the whole frame (enlarged where it is smaller than the crop) and cut the crop out of it."""
    height, width = (max(size, CROP_SIZE) for size in frame_3HW.shape[-2:])
    padded = functional.pad(frame_3HW, (0, width - frame_3HW.shape[2], 0, height - frame_3HW.shape[1]), value=-1.0)
    last_row = matrix_23.new_tensor([[0.0, 0.0, 1.0]])
    # Pixel centres: normalised = (2 x + 1) / size - 1.
    units = matrix_23.new_tensor([[2 / width, 0, 1 / width - 1], [0, 2 / height, 1 / height - 1], [0, 0, 1]])
    theta = torch.linalg.inv(units @ torch.cat([matrix_23, last_row]) @ torch.linalg.inv(units))[:2]
    grid = functional.affine_grid(theta[None], [1, 3, height, width], align_corners=False)
    warped = functional.grid_sample(padded[None] + 1, grid, align_corners=False) - 1
    return warped[0, :, :CROP_SIZE, :CROP_SIZE]


def _starts(length: int, size: int, stride: int) -> list[int]:
    return [start for start in range(0, length, stride) if start == 0 or start - stride + size < length]


def _mask(decoded: Tensor, top: int, left: int, height: int, width: int, tiles: Tiles) -> Tensor:
    """Return the blending weights of a tile."""
    rows = _ramp(decoded.shape[-2], (tiles.size[0] - tiles.stride[0]) * 8, top > 0, top + tiles.size[0] < height)
    columns = _ramp(decoded.shape[-1], (tiles.size[1] - tiles.stride[1]) * 8, left > 0, left + tiles.size[1] < width)
    return torch.minimum(rows[:, None], columns[None, :])


def _ramp(length: int, border: int, before: bool, after: bool) -> Tensor:
    weights, rise = torch.ones(length), (torch.arange(border) + 1) / border
    if before:
        weights[:border] = rise[:length]
    if after:
        weights[-border:] = rise.flip(0)[-length:]
    return weights
