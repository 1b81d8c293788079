"""One training step of the trainer's own code on networks without data, counted.

Runs `Rollout`, the reward and the objective as the training loop does: what changes there changes here. DeepSpeed is not run (see
`engine.py`). Must not hold formulas of FLOPs or memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rewardfl_api.training import TrainingParameters

from ..conditioning import Condition
from ..lora import lora_layers
from ..models import DTYPES, MAX_TEXT_TOKENS, Models
from ..objective import Objective
from ..offload import Offload
from ..rewards.composition import Rewards
from ..rewards.face import FaceReward
from ..rollout import Rollout
from ..sampling import Plan
from ..trainable import Trainable, make_trainable
from ..wan_vae import LATENT_CHANNELS, latent_shape
from .shapes import give_shapes
from .tracker import HOST, Tracker

WEIGHTS, GRADIENTS, ACTIVATIONS, REFERENCE, DECODE, REWARD, ENCODE, TEXT = (
    "weights",
    "gradients",
    "activations",
    "reference",
    "decode",
    "reward",
    "encode",
    "text",
)


@dataclass(frozen=True)
class Video:
    """Size of the videos."""

    num_frames: int
    height: int
    width: int


class FollowedOffload(Offload):
    """Offloads as in training; what is in CPU memory then is told apart, though all of it is on one device here."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self.tracker = tracker

    def to_host(self, source: Tensor) -> Tensor:
        """Return a copy that counts as CPU memory."""
        with self.tracker.labelled(HOST):
            return source.clone()


@dataclass
class Step:
    """A step on networks, real ones or shapes."""

    models: Models
    trainable: Trainable
    rewards: Rewards
    parameters: TrainingParameters
    plan: Plan
    tracker: Tracker
    rollout: Rollout

    @classmethod
    def on_shapes(
        cls, models: Models, rewards: Rewards, parameters: TrainingParameters, rollout: type[Rollout] | None = Rollout
    ) -> "Step":
        """Return a step whose networks become shapes where they are not. Without a rollout all stay frozen."""
        trainable = make_trainable(models, parameters, Plan.of(parameters)) if rollout else Trainable({}, None, None)
        step = cls.of(models, trainable, rewards, parameters, rollout or Rollout)
        for network in step.networks():
            give_shapes(network)
        return step

    @classmethod
    def of(
        cls,
        models: Models,
        trainable: Trainable,
        rewards: Rewards,
        parameters: TrainingParameters,
        form: type[Rollout] = Rollout,
    ) -> "Step":
        """Return a step whose networks are watched."""
        plan = Plan.of(parameters)
        rollout = form(models, trainable, plan, parameters)
        tracker = Tracker(ACTIVATIONS)
        rollout.checkpointing = replace(rollout.checkpointing, mover=FollowedOffload(tracker))
        step = cls(models, trainable, rewards, parameters, plan, tracker, rollout)
        step._watch()
        return step

    def _watch(self) -> None:
        """Tell the tracker which module does what."""
        for name, network in self.models.networks().items():
            if name in ("dit", "dit2"):
                self._watch_dit(network, _denoising(network))
        if self.trainable.reference is not None:
            for name in self.trainable.networks:
                if name in ("dit", "dit2"):
                    self._watch_dit(self.trainable.reference.network(name), REFERENCE)
        vae: Any = self.models.vae
        self.tracker.watch(vae.model.decoder, DECODE)
        self.tracker.watch(vae.model.encoder, ENCODE)
        if self.models.text_encoder is not None:
            self.tracker.watch(self.models.text_encoder, TEXT)
        for part in self.rewards.parts.values():
            reward: nn.Module = part.reward
            if isinstance(reward, FaceReward):
                self.tracker.watch(reward.detector.network, REWARD)
                self.tracker.watch(reward.recogniser.network, REWARD)
            else:
                self.tracker.watch(reward, REWARD)

    def _watch_dit(self, dit: Any, label: str | Callable[[], str]) -> None:
        for module in (dit.text_embedding, dit.time_embedding, dit.patch_embedding, *dit.blocks, dit.head):
            self.tracker.watch(module, label)

    def networks(self) -> list[nn.Module]:
        """Return every network, each once."""
        networks = [*self.models.networks().values(), *(part.reward for part in self.rewards.parts.values())]
        if self.trainable.reference is not None:
            networks += [network for network in self.trainable.reference.networks().values() if network not in networks]
        return networks

    def hold_weights(self) -> None:
        """Follow what is there before the step, and gradients as they come."""
        tensors = [tensor for network in self.networks() for tensor in (*network.parameters(), *network.buffers())]
        self.tracker.hold_all(tensors, WEIGHTS)
        for _, parameter in self.trainable.parameters():

            def accumulated(parameter: Tensor) -> None:
                if parameter.grad is not None:
                    self.tracker.hold(parameter.grad, GRADIENTS)

            parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]

    def train(self, condition: Condition, latents_BCthw: Tensor, reference: Any, kl_steps: list[int], first_step: int) -> None:
        """Run forward and backward."""
        video_B3THW, kl = self.rollout.trained_video(condition, latents_BCthw, kl_steps, None, first_step)
        scores = self.rewards(video_B3THW, reference)
        loss = Objective.of(self.parameters).combined(scores.value, kl)
        del video_B3THW, scores
        loss.backward()  # type: ignore[no-untyped-call]

    def inputs(self, video: Video) -> tuple[Condition, Tensor]:
        """Return a condition and latents of the right shapes."""
        dtype = DTYPES[self.parameters.dtype]
        shape = latent_shape(video.num_frames, video.height, video.width)
        dit: Any = self.models.dit2 or self.models.dit
        image = torch.zeros(1, dit.in_dim - LATENT_CHANNELS, *shape[2:], dtype=dtype) if dit.in_dim > LATENT_CHANNELS else None
        context = torch.zeros(1, MAX_TEXT_TOKENS, dit.text_embedding[0].in_features, dtype=dtype)
        return Condition(context, image, shape), torch.zeros(shape, dtype=dtype)


def _denoising(dit: nn.Module) -> Callable[[], str]:
    """Return what a DiT does at a moment: it denoises, or it is the reference while its adapters are off."""
    layer = next(lora_layers(dit), None)

    def label() -> str:
        off = layer is not None and layer.disable_adapters and torch._C._current_graph_task_id() == -1
        return REFERENCE if off else ACTIVATIONS

    return label
