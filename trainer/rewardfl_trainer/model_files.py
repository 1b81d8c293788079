"""Which files make up each model: from `training.model_paths` to lists of files, and from files to what they hold.

Reads names, headers and sidecars; builds no network. Weights are safetensors or torch files of plain tensors, never code.
"""

import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import split_names

ModelName = Literal["wan_video_dit", "wan_video_text_encoder", "wan_video_vae"]
MODEL_NAMES: tuple[ModelName, ...] = ("wan_video_dit", "wan_video_text_encoder", "wan_video_vae")

SIDECAR_SUFFIX = ".config.json"
"""`<first file>.config.json` says what a file holds where DiffSynth's table does not know it."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
"""In order of preference within a folder."""

_SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.\w+)$")
_GLOB = re.compile(r"[*?\[]")

PATHS_HINT = (
    "training.model_paths lists the high-noise DiT, the low-noise DiT, the text encoder and the VAE: files, folders, "
    "patterns or comma-separated shards, or one JSON file that lists them."
)


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar file says: which network a weights file belongs to, and the arguments of its constructor."""

    model_name: ModelName
    extra_kwargs: dict[str, Any] = field(default_factory=dict)


def not_found(message: str) -> RewardFLError:
    """Return the error of a model file that is not there."""
    return RewardFLError(Reason.MODEL_NOT_FOUND, message, PATHS_HINT, ExitCode.MISSING_INPUT)


def unknown(message: str, hint: str = PATHS_HINT) -> RewardFLError:
    """Return the error of a file that is not a model of the family."""
    return RewardFLError(Reason.MODEL_UNKNOWN, message, hint, ExitCode.BAD_CONFIGURATION)


def resolve_model_paths(model_paths: Sequence[str]) -> list[list[Path]]:
    """Return the files of each model, in the order given.

    Args:
        model_paths: local paths, one model each; or a single JSON file that lists them, relative to its own folder.

    Raises:
        RewardFLError: a file, folder, pattern or shard is missing (ModelNotFound, exit code 66).
    """
    if len(model_paths) == 1 and model_paths[0].endswith(".json"):
        return _from_json(Path(model_paths[0]))
    return [_expand(split_names(entry), Path()) for entry in model_paths]


def _from_json(path: Path) -> list[list[Path]]:
    """Read ROLL's form: a list (or an object) with a path, or the list of a model's shards, for each model."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise not_found(f"training.model_paths={path}: {error.strerror}.") from error
    except ValueError as error:
        raise unknown(f"training.model_paths={path}: not JSON ({error}).") from error
    entries = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise unknown(f"training.model_paths={path}: must hold a list of paths.")
    return [_expand(_shards(entry, path), path.parent) for entry in entries]


def _shards(entry: object, path: Path) -> list[str]:
    """Return the paths of one model in the JSON file."""
    if isinstance(entry, str):
        return split_names(entry)
    if isinstance(entry, list) and all(isinstance(shard, str) for shard in entry):
        return entry
    raise unknown(f"training.model_paths={path}: {entry!r} is neither a path nor a list of paths.")


def _expand(entries: Sequence[str], folder: Path) -> list[Path]:
    """Return the files that one model's paths, folders and patterns mean."""
    files = [file for entry in entries for file in _files_of(folder / entry)]
    if not files:
        raise not_found("training.model_paths: an entry is empty.")
    _check_shards(files)
    return files


def _files_of(path: Path) -> list[Path]:
    """Return the files of one path, folder or pattern."""
    if path.is_file():
        return [path]
    if path.is_dir():
        for suffix in WEIGHT_SUFFIXES:
            if files := sorted(path.glob(f"*{suffix}")):
                return files
        raise not_found(f"training.model_paths={path}: the folder holds no weights ({', '.join(WEIGHT_SUFFIXES)}).")
    if _GLOB.search(path.name):
        if files := sorted(file for file in path.parent.glob(path.name) if file.suffix in WEIGHT_SUFFIXES):
            return files
        raise not_found(f"training.model_paths={path}: no file matches the pattern.")
    raise not_found(f"training.model_paths={path}: no such file or folder.")


def _check_shards(files: Sequence[Path]) -> None:
    """Refuse an incomplete set of numbered shards."""
    names = {file.name for file in files}
    for match in filter(None, (_SHARD.match(file.name) for file in files)):
        count, width = int(match["count"]), len(match["number"])
        wanted = {f"{match['stem']}-{number:0{width}}-of-{match['count']}{match['suffix']}" for number in range(1, count + 1)}
        if missing := sorted(wanted - names):
            raise not_found(f"training.model_paths={files[0].parent}: shard {missing[0]} of {count} is missing.")


def read_sidecar(files: Sequence[Path]) -> Sidecar | None:
    """Return what stands in the sidecar beside the first file; None without one."""
    path = files[0].with_name(files[0].name + SIDECAR_SUFFIX)
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        name, arguments = content["model_name"], content.get("extra_kwargs", {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unknown(f"{path}: not a sidecar (an object with model_name and extra_kwargs).") from error
    if name not in MODEL_NAMES or not isinstance(arguments, dict):
        raise unknown(f"{path}: model_name={name!r}: must be one of {', '.join(MODEL_NAMES)}.")
    return Sidecar(name, arguments)


def read_shapes(files: Sequence[Path]) -> dict[str, Any]:
    """Return the shape of each tensor by its name (nested as in the file), reading as little of the files as possible."""
    shapes: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as tensors:
                shapes.update({key: list(tensors.get_slice(key).get_shape()) for key in tensors.keys()})  # noqa: SIM118
        else:
            shapes.update(_nested_shapes(_load_torch_file(file)))
    return shapes


def read_tensors(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of the files one by one; tensors are mapped, not copied, where the format allows it."""
    for file in files:
        if file.suffix == ".safetensors":
            with _open_safetensors(file) as tensors:
                for key in tensors.keys():  # noqa: SIM118 (safe_open is not a mapping)
                    yield key, tensors.get_tensor(key)
        else:
            yield from _load_torch_file(file).items()


def _open_safetensors(file: Path) -> Any:
    """Open a safetensors file; a damaged one is named."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise unknown(f"{file}: not a safetensors file ({error}).", "Fetch the file again.") from error


def _load_torch_file(file: Path) -> Mapping[str, Any]:
    """Map a torch file of plain tensors. Anything else in it is refused and not executed."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        summary = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise unknown(f"{file}: not a torch file of plain tensors ({summary}).", "Fetch the file again.") from error
    if not isinstance(content, Mapping):
        raise unknown(f"{file}: holds a {type(content).__name__}, not tensors by name.")
    for wrapper in ("state_dict", "module", "model_state"):
        if len(content) == 1 and isinstance(content.get(wrapper), Mapping):
            return content[wrapper]  # type: ignore[no-any-return]
    return content


def _nested_shapes(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return shapes in place of tensors."""
    return {
        key: list(value.shape) if isinstance(value, Tensor) else _nested_shapes(value)
        for key, value in content.items()
        if isinstance(value, Tensor | Mapping)
    }
