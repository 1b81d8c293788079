"""The networks of a configuration as shapes: built without memory, recognised as the trainer recognises them, never loaded.

Where the files are local, they say what they hold. Where they still lie in a bucket or on a hub, Wan2.2-I2V-A14B is assumed.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from rewardfl_api.errors import RewardFLError
from rewardfl_api.training import TrainingParameters

from .. import models as loading
from ..model_files import not_found, resolve_model_paths
from ..models import DTYPES, MAX_TEXT_TOKENS, Models
from ..rewards.base import RewardContext
from ..rewards.composition import Part, Rewards
from ..rewards.face import FaceReward
from ..rewards.registry import find_class, make_reward
from .face_networks import FaceEverywhere, antelopev2

A14B = "Wan2.2-I2V-A14B"
A14B_HASH = "5b013604280dd715f8457c6ed6d6a626"
"""DiffSynth's hash of the names and shapes in an expert of Wan2.2-I2V-A14B."""

PARTS = {"wan_video_dit": "dit", "wan_video_text_encoder": "text_encoder", "wan_video_vae": "vae"}

Builder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Architecture:
    """How the networks of a family are built. Both experts are alike."""

    title: str
    builders: dict[str, Builder]
    """By the names `dit`, `text_encoder` and `vae`."""

    @cached_property
    def num_blocks(self) -> int:
        """Blocks of a DiT."""
        return len(cast(nn.ModuleList, self.empty("dit").blocks))

    def empty(self, name: str) -> nn.Module:
        """Return a network without memory for its weights."""
        with loading._import("diffsynth.core.vram.initialization.skip_model_initialization")():
            return self.builders[name]()


def a14b() -> Architecture:
    """Return Wan2.2-I2V-A14B as DiffSynth's table describes it, with Wan2.1's VAE and umT5-xxl."""
    from diffsynth.configs import MODEL_CONFIGS  # noqa: PLC0415 - takes seconds

    config = next(config for config in MODEL_CONFIGS if config["model_hash"] == A14B_HASH)
    builders = {
        "dit": loading._recipe_of_config(config).build,
        "text_encoder": loading._build_text_encoder,
        "vae": lambda: cast(nn.Module, loading._import("diffsynth.models.wan_video_vae.WanVideoVAE")()),
    }
    return Architecture(A14B, builders)


def architecture_of(parameters: TrainingParameters) -> Architecture:
    """Return what the local model files hold; A14B where they are not all here.

    Raises:
        RewardFLError: a local file is not a model of the family (exit code 78).
    """
    if not parameters.model_paths or any("://" in path for path in parameters.model_paths):
        return a14b()
    recipes = [loading._recognise(files) for files in resolve_model_paths(parameters.model_paths)]
    builders = {PARTS[recipe.model_name]: recipe.build for recipe in reversed(recipes)}
    missing = set(PARTS.values()) - set(builders)
    if missing:
        raise not_found(f"training.model_paths: no {' and no '.join(sorted(missing))} among them.")
    return Architecture("the models of training.model_paths", builders)


class Tokenizer:
    """Returns a prompt as long as prompts can be: shapes have no words."""

    def __call__(self, prompt: str, return_mask: bool, add_special_tokens: bool) -> tuple[Tensor, Tensor]:
        """Return ids and mask [1, 512]."""
        del prompt, return_mask, add_special_tokens
        return torch.zeros(1, MAX_TEXT_TOKENS, dtype=torch.long), torch.ones(1, MAX_TEXT_TOKENS, dtype=torch.long)


def empty_models(
    architecture: Architecture, parameters: TrainingParameters, names: Collection[str], num_blocks: int | None = None
) -> Models:
    """Return networks on the meta device in the trainer's types, frozen.

    Args:
        architecture: what is built.
        parameters: says the compute type.
        names: those of `dit`, `dit2`, `text_encoder` and `vae` that are wanted; the others are None.
        num_blocks: blocks of a DiT that are built. None: all.
    """
    networks: dict[str, Any] = dict.fromkeys(("dit", "dit2", "text_encoder", "vae"))
    for name in names:
        network = architecture.empty("dit" if name == "dit2" else name)
        if name in ("dit", "dit2"):
            network.blocks = cast(nn.ModuleList, network.blocks)[:num_blocks]
        for key, parameter in network.named_parameters():
            parameter.data = parameter.data.to("meta", loading._dtype_of(key, DTYPES[parameters.dtype]))
        networks[name] = network.requires_grad_(False).eval()
    return Models(**networks, tokenizer=cast(Any, Tokenizer()))


def empty_rewards(parameters: TrainingParameters) -> Rewards:
    """Return the rewards of the configuration, their face networks those of `reward_model_path` or antelopev2's.

    Raises:
        RewardFLError: there is no such reward (exit code 78).
    """
    context = RewardContext(parameters, torch.device("cpu"))
    parts = {
        f"{number}": Part(_empty_faces(parameters) if find_class(spec.name) is FaceReward else make_reward(spec, context))
        for number, spec in enumerate(parameters.reward_specs)
    }
    return Rewards(parts)


def _empty_faces(parameters: TrainingParameters) -> FaceReward:
    """Return the face reward.

    A network whose file holds sizes as data (SCRFD's `Reshape`) cannot be run without data; antelopev2's stands for it.
    """
    with torch.device("meta"):
        faces = antelopev2()
    try:
        found = FaceReward.load(Path(parameters.reward_model_path))
    except RewardFLError:  # not here, or not yet
        return faces
    if not _holds_sizes(found.detector.network):
        faces.detector = FaceEverywhere(found.detector.network)
    if not _holds_sizes(found.recogniser.network):
        faces.recogniser = found.recogniser
    return faces


def _holds_sizes(network: nn.Module) -> bool:
    return any(not buffer.is_floating_point() for buffer in network.buffers())
