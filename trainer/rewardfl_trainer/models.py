"""Loads the networks of the Wan2.2 family: both diffusion transformers, the umT5 encoder with its tokenizer, and the VAE.

A file is known by DiffSynth's own table (a hash over the names and shapes of its tensors), or by its sidecar. Networks come
back frozen, in evaluation mode, in the compute type; what is trained is decided in `trainable.py`. Nothing is downloaded.
Finding is cheap and loading is not, so a run finds everything first and loads for each phase what that phase needs.
"""

import hashlib
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

from .model_files import (
    MODEL_NAMES,
    SIDECAR_SUFFIX,
    Sidecar,
    not_found,
    read_shapes,
    read_sidecar,
    read_tensors,
    resolve_model_paths,
    unknown,
)
from .wan_dit import TIME_MODULES, keep_attention_exact
from .wan_vae import LATENT_CHANNELS

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
    from diffsynth.models.wan_video_vae import WanVideoVAE

TOKENIZER_HINT = "training.tokenizer_path is the folder of the umT5 tokenizer (google/umt5-xxl of a Wan repository)."

TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
"""One of them holds a tokenizer's vocabulary."""

MAX_TEXT_TOKENS = 512
"""Length to which Wan pads every prompt."""

ALL_NETWORKS = ("dit", "dit2", "text_encoder", "vae")

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class NotLoadedError(LookupError):
    """A network was asked for that is not in memory in this phase of the run: a fault of the program, not of its user."""

    def __str__(self) -> str:
        return f"{self.args[0]} is not loaded in this phase of the run"


@dataclass
class Models:
    """The networks that are in memory. `dit` denoises at high noise, `dit2` at low noise; a single-DiT model has no `dit2`.

    A network that a phase of the run does not need is None.
    """

    dit: "WanModel | None"
    dit2: "WanModel | None"
    text_encoder: "WanTextEncoder | None"
    vae: "WanVideoVAE"
    tokenizer: "HuggingfaceTokenizer | None"

    def network(self, name: str) -> nn.Module:
        """Return a network by its name in `trainable_models`.

        Raises:
            RewardFLError: the run has no second DiT (ModelNotFound, exit code 66).
            NotLoadedError: it is not loaded in this phase of the run.
        """
        network: nn.Module | None = getattr(self, name)
        if network is None and name == "dit2":
            raise not_found(f"{name}: training.model_paths holds one DiT; give the low-noise model as well.")
        if network is None:
            raise NotLoadedError(name)
        return network

    def networks(self) -> dict[str, nn.Module]:
        """Return every network by its name."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, nn.Module)}


@dataclass(frozen=True)
class _Recipe:
    """How a network is built and its tensors named."""

    model_name: str
    build: Callable[[], nn.Module]
    rename: Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class FoundModels:
    """The files of each network, by its name in `trainable_models`: recognised, and not loaded yet."""

    parts: dict[str, tuple[list[Path], _Recipe]]

    def files(self, name: str) -> list[Path]:
        """Return all files that make up a network: its weights, in order, and the sidecar where there is one."""
        weights = self.parts[name][0]
        sidecar = weights[0].with_name(weights[0].name + SIDECAR_SUFFIX)
        return [*weights, *([sidecar] if sidecar.is_file() else [])]

    def empty_dit(self) -> "WanModel":
        """Return the DiT without memory for its weights, to look at its sizes."""
        files, recipe = self.parts["dit"]
        dit: WanModel = _build(files, recipe)
        return dit


def find_models(parameters: TrainingParameters) -> FoundModels:
    """Find out which file is which network, all paths being local. Reads names and headers.

    Raises:
        RewardFLError: a file is missing (exit code 66) or is not a model of the family (exit code 78).
    """
    found: dict[str, list[tuple[list[Path], _Recipe]]] = {name: [] for name in MODEL_NAMES}
    for files in resolve_model_paths(parameters.model_paths or []):
        recipe = _recognise(files)
        found[recipe.model_name].append((files, recipe))
    dits = found["wan_video_dit"][: 1 if parameters.uses_single_dit else 2]
    _check_complete(found, dits, parameters)
    parts = dict(zip(("dit", "dit2"), dits, strict=False))
    parts["text_encoder"], parts["vae"] = (found[name][0] for name in MODEL_NAMES[1:])
    models = FoundModels(parts)
    _check_dit(models.empty_dit())
    return models


def load_models(
    parameters: TrainingParameters,
    device: torch.device,
    found: FoundModels | None = None,
    names: Collection[str] = ALL_NETWORKS,
    *,
    encoder: bool = True,
) -> Models:
    """Load networks, all paths being local.

    Args:
        parameters: paths and the compute type.
        device: where they are to lie.
        found: what `find_models` returned; None: found here.
        names: networks that are needed; the VAE always is, and the tokenizer comes with the text encoder.
        encoder: whether the VAE keeps its encoder.

    Raises:
        RewardFLError: a file is missing (exit code 66) or is not a model of the family (exit code 78).
    """
    found = found or find_models(parameters)
    dtype = DTYPES[parameters.dtype]
    networks: dict[str, Any] = {
        name: _load_network(*part, dtype, device) for name, part in found.parts.items() if name in names or name == "vae"
    }
    for name in ("dit", "dit2"):
        if name in networks:
            _check_dit(networks[name])
            keep_attention_exact()
    if not encoder:
        drop_encoder(networks["vae"])
    with_text = "text_encoder" in networks
    return Models(
        dit=networks.get("dit"),
        dit2=networks.get("dit2"),
        text_encoder=networks.get("text_encoder"),
        vae=networks["vae"],
        tokenizer=load_tokenizer(parameters.tokenizer_path) if with_text else None,
    )


class Dropped(nn.Module):
    """Stands where a part of a network was that is not needed any more."""

    def forward(self, *_arguments: object, **_keywords: object) -> None:
        """Fail: nobody may ask for it.

        Raises:
            NotLoadedError: always.
        """
        raise NotLoadedError("this part of the network")


def drop_encoder(vae: "WanVideoVAE") -> None:
    """Take the encoder out of a VAE, in place. Decoding stays as it is."""
    vae.model.encoder, vae.model.conv1 = Dropped(), Dropped()


def load_tokenizer(path: str) -> "HuggingfaceTokenizer":
    """Load the umT5 tokenizer from a local folder.

    Raises:
        RewardFLError: the folder is missing or holds no tokenizer (ModelNotFound, exit code 66).
    """
    from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer  # noqa: PLC0415 - see `_import`

    check_tokenizer(path)
    try:
        return HuggingfaceTokenizer(
            name=path, seq_len=MAX_TEXT_TOKENS, clean="whitespace", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        message = f"training.tokenizer_path={path}: holds no tokenizer ({str(error).splitlines()[0]})."
        raise RewardFLError(Reason.MODEL_NOT_FOUND, message, TOKENIZER_HINT, ExitCode.MISSING_INPUT) from error


def check_tokenizer(path: str) -> None:
    """Refuse a tokenizer folder that is not there or is none, without loading it.

    Raises:
        RewardFLError: the folder is missing or holds no tokenizer (ModelNotFound, exit code 66).
    """
    folder = Path(path)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        problem = f"holds no tokenizer ({' or '.join(TOKENIZER_FILES)})" if folder.is_dir() else "no such folder"
        message = f"training.tokenizer_path={path}: {problem}."
        raise RewardFLError(Reason.MODEL_NOT_FOUND, message, TOKENIZER_HINT, ExitCode.MISSING_INPUT)


def _check_complete(
    found: Mapping[str, Sequence[object]], dits: Sequence[tuple[list[Path], _Recipe]], parameters: TrainingParameters
) -> None:
    """Every part of the family must be there, and no part twice."""
    needed = {"wan_video_dit": 1 if parameters.uses_single_dit else 2, "wan_video_text_encoder": 1, "wan_video_vae": 1}
    titles: dict[str, str] = dict(zip(MODEL_NAMES, ("DiT", "text encoder", "VAE"), strict=True))
    for name, count in needed.items():
        if len(found[name]) < count:
            reason = f"the timestep boundaries ask for {count}" if count > 1 else "there is none"
            raise not_found(f"training.model_paths: {len(found[name])} {titles[name]} found, {reason}.")
        if name != "wan_video_dit" and len(found[name]) > count:
            raise unknown(f"training.model_paths: {len(found[name])} models are a {titles[name]}; give one.")


def _recognise(files: list[Path]) -> _Recipe:
    """Return how to build what the files hold."""
    sidecar = read_sidecar(files)
    if sidecar is not None:
        return _recipe_of_sidecar(sidecar)
    from diffsynth.configs import MODEL_CONFIGS  # noqa: PLC0415 - see `_import`

    digest = shapes_digest(read_shapes(files))
    for config in MODEL_CONFIGS:
        if config["model_hash"] == digest and config["model_name"] in MODEL_NAMES:
            return _recipe_of_config(config)
    raise unknown(
        f"{files[0]}: not a model that DiffSynth knows (hash {digest}).",
        "Use the official files of Wan2.2-I2V-A14B or of a distilled version with the same tensors; other sizes need a "
        "<file>.config.json beside the file.",
    )


def shapes_digest(shapes: Mapping[str, Any]) -> str:
    """Return DiffSynth's hash of a file: MD5 over the names and shapes of its tensors. It identifies, it does not protect."""
    return hashlib.md5(_shapes_text(shapes).encode(), usedforsecurity=False).hexdigest()


def _shapes_text(shapes: Mapping[str, Any]) -> str:
    """Return the text that DiffSynth hashes."""
    parts: list[str] = []
    for key, shape in shapes.items():
        if isinstance(shape, Mapping):
            parts.append(f"{key}|{_shapes_text(shape)}")
        else:
            parts += [f"{key}:{'_'.join(map(str, shape))}", key]
    return ",".join(sorted(parts))


def _import(path: str) -> Any:
    """Return what a dotted path names. DiffSynth takes seconds to import, so nothing here does it before it is needed."""
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _recipe_of_config(config: Mapping[str, Any]) -> _Recipe:
    """Return the recipe of an entry of DiffSynth's table."""
    network = _import(config["model_class"])
    rename = _import(config["state_dict_converter"]) if "state_dict_converter" in config else dict
    return _Recipe(config["model_name"], lambda: network(**config.get("extra_kwargs", {})), rename)


def _recipe_of_sidecar(sidecar: Sidecar) -> _Recipe:
    """Return the recipe that a sidecar describes."""
    builders = {"wan_video_dit": _build_dit, "wan_video_text_encoder": _build_text_encoder, "wan_video_vae": _build_vae}
    is_vae = sidecar.model_name == "wan_video_vae"
    rename = _import("diffsynth.utils.state_dict_converters.wan_video_vae.WanVideoVAEStateDictConverter") if is_vae else dict
    return _Recipe(sidecar.model_name, lambda: builders[sidecar.model_name](**sidecar.extra_kwargs), rename)


def _build_dit(**arguments: Any) -> nn.Module:
    network: nn.Module = _import("diffsynth.models.wan_video_dit.WanModel")(**arguments)
    return network


def _build_text_encoder(**arguments: Any) -> nn.Module:
    network: nn.Module = _import("diffsynth.models.wan_video_text_encoder.WanTextEncoder")(**arguments)
    return network


def _build_vae(**arguments: Any) -> nn.Module:
    """Build Wan's VAE (with its fixed statistics of the latents) around a network of another width."""
    vae: nn.Module = _import("diffsynth.models.wan_video_vae.WanVideoVAE")()
    vae.model = _import("diffsynth.models.wan_video_vae.VideoVAE_")(**arguments)
    return vae


def _load_network(files: list[Path], recipe: _Recipe, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the network without memory for its initial values, and put the files' tensors in their place."""
    network = _build(files, recipe)
    tensors = recipe.rename(dict(read_tensors(files)))
    placed = {name: tensor.to(device=device, dtype=_dtype_of(name, dtype)) for name, tensor in tensors.items()}
    try:
        network.load_state_dict(placed, assign=True)
    except RuntimeError as error:
        raise unknown(f"{files[0]}: does not fit a {recipe.model_name}: {' '.join(str(error).split())[:300]}") from error
    return network.requires_grad_(False).eval()


def _build(files: list[Path], recipe: _Recipe) -> Any:
    """Build the network without memory for its values."""
    skip_initialization = _import("diffsynth.core.vram.initialization.skip_model_initialization")
    try:
        with skip_initialization():
            return recipe.build()
    except (TypeError, ValueError, AssertionError) as error:
        raise unknown(f"{files[0]}: the sidecar's extra_kwargs do not build a {recipe.model_name} ({error}).") from error


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor: the compute type, but at least fp32 in the DiT's time layers."""
    return torch.promote_types(dtype, torch.float32) if name.partition(".")[0] in TIME_MODULES else dtype


def _check_dit(dit: "WanModel") -> None:
    """Only the transformers that take and predict Wan2.1's 16 latent channels are trained here."""
    if getattr(dit, "fuse_vae_embedding_in_latents", False) or dit.head.head.out_features % LATENT_CHANNELS != 0:
        raise unknown("training.model_paths: a TI2V model; use Wan2.2-I2V-A14B or another model on Wan2.1's VAE.")
    if dit.has_image_input:
        raise unknown("training.model_paths: a Wan2.1 I2V model, which needs CLIP features; use Wan2.2-I2V-A14B.")
