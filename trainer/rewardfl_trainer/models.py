"""Loads the networks of the Wan2.2 family: both diffusion transformers, the umT5 encoder with its tokenizer, and the VAE.

A file is known by DiffSynth's own table (a hash over the names and shapes of its tensors), or by its sidecar. Networks come
back frozen, in evaluation mode, in the compute type; what is trained is decided in `trainable.py`. Nothing is downloaded.
"""

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

from .model_files import MODEL_NAMES, Sidecar, not_found, read_shapes, read_sidecar, read_tensors, resolve_model_paths, unknown
from .wan_dit import TIME_MODULES
from .wan_vae import LATENT_CHANNELS

if TYPE_CHECKING:
    from diffsynth.models.wan_video_dit import WanModel
    from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer, WanTextEncoder
    from diffsynth.models.wan_video_vae import WanVideoVAE

MAX_TEXT_TOKENS = 512
"""Length to which Wan pads every prompt."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass
class Models:
    """The networks of a run. `dit` denoises at high noise, `dit2` at low noise; a single-DiT model has no `dit2`."""

    dit: "WanModel"
    dit2: "WanModel | None"
    text_encoder: "WanTextEncoder"
    vae: "WanVideoVAE"
    tokenizer: "HuggingfaceTokenizer"

    def network(self, name: str) -> nn.Module:
        """Return a network by its name in `trainable_models`."""
        network: nn.Module | None = getattr(self, name)
        if network is None:
            raise not_found(f"{name}: training.model_paths holds one DiT; give the low-noise model as well.")
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


def load_models(parameters: TrainingParameters, device: torch.device) -> Models:
    """Load the networks that the parameters name, all paths being local.

    Raises:
        RewardFLError: a file is missing (exit code 66) or is not a model of the family (exit code 78).
    """
    found: dict[str, list[tuple[list[Path], _Recipe]]] = {name: [] for name in MODEL_NAMES}
    for files in resolve_model_paths(parameters.model_paths or []):
        recipe = _recognise(files)
        found[recipe.model_name].append((files, recipe))
    dits = found["wan_video_dit"][: 1 if parameters.uses_single_dit else 2]
    _check_complete(found, dits, parameters)
    dtype = DTYPES[parameters.dtype]
    networks = [_load_network(files, recipe, dtype, device) for files, recipe in dits]
    text_encoder, vae = (_load_network(*found[name][0], dtype, device) for name in MODEL_NAMES[1:])
    for network in networks:
        _check_dit(network)
    return Models(
        dit=networks[0],
        dit2=networks[1] if len(networks) > 1 else None,
        text_encoder=text_encoder,
        vae=vae,
        tokenizer=load_tokenizer(parameters.tokenizer_path),
    )


def load_tokenizer(path: str) -> "HuggingfaceTokenizer":
    """Load the umT5 tokenizer from a local folder.

    Raises:
        RewardFLError: the folder is missing or holds no tokenizer (ModelNotFound, exit code 66).
    """
    from diffsynth.models.wan_video_text_encoder import HuggingfaceTokenizer  # noqa: PLC0415 - see `_import`

    hint = "training.tokenizer_path is the folder of the umT5 tokenizer (google/umt5-xxl of a Wan repository)."
    if not Path(path).is_dir():
        message = f"training.tokenizer_path={path}: no such folder."
        raise RewardFLError(Reason.MODEL_NOT_FOUND, message, hint, ExitCode.MISSING_INPUT)
    try:
        return HuggingfaceTokenizer(
            name=path, seq_len=MAX_TEXT_TOKENS, clean="whitespace", local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        message = f"training.tokenizer_path={path}: holds no tokenizer ({str(error).splitlines()[0]})."
        raise RewardFLError(Reason.MODEL_NOT_FOUND, message, hint, ExitCode.MISSING_INPUT) from error


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
    skip_initialization = _import("diffsynth.core.vram.initialization.skip_model_initialization")
    try:
        with skip_initialization():
            network = recipe.build()
    except (TypeError, ValueError, AssertionError) as error:
        raise unknown(f"{files[0]}: the sidecar's extra_kwargs do not build a {recipe.model_name} ({error}).") from error
    tensors = recipe.rename(dict(read_tensors(files)))
    placed = {name: tensor.to(device=device, dtype=_dtype_of(name, dtype)) for name, tensor in tensors.items()}
    try:
        network.load_state_dict(placed, assign=True)
    except RuntimeError as error:
        raise unknown(f"{files[0]}: does not fit a {recipe.model_name}: {' '.join(str(error).split())[:300]}") from error
    return network.requires_grad_(False).eval()


def _dtype_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor: the compute type, but at least fp32 in the DiT's time layers."""
    return torch.promote_types(dtype, torch.float32) if name.partition(".")[0] in TIME_MODULES else dtype


def _check_dit(dit: "WanModel") -> None:
    """Only the transformers that take and predict Wan2.1's 16 latent channels are trained here."""
    if getattr(dit, "fuse_vae_embedding_in_latents", False) or dit.head.head.out_features % LATENT_CHANNELS != 0:
        raise unknown("training.model_paths: a TI2V model; use Wan2.2-I2V-A14B or another model on Wan2.1's VAE.")
    if dit.has_image_input:
        raise unknown("training.model_paths: a Wan2.1 I2V model, which needs CLIP features; use Wan2.2-I2V-A14B.")
