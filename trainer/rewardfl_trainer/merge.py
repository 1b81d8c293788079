"""`rewardfl merge`: a LoRA put into the DiT it was trained on, one tensor at a time.

The result has the keys, shapes and types of the base, so whatever recognises the base recognises it (DiffSynth by a hash over
keys and shapes). A weight is W + scale * alpha / rank * up @ down, computed in fp32 and rounded once to W's type.
Builds no network.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

from .lora_files import SUFFIX, load_lora, refuse_existing
from .lora_layouts import Lora, bad_lora, wan_layer
from .model_files import SIDECAR_SUFFIX, read_tensors, resolve_model_paths, unknown
from .safetensors_stream import TYPE_NAMES, SafetensorsStream, TensorInfo

WEIGHT = ".weight"
DEFAULT_SHARD_BYTES = 10 * 10**9
"""Above this a model is written as shards, as the hubs have them."""

MERGEABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Merged:
    """What a merge has written."""

    files: list[Path]
    """The shards, in order; or the one file."""
    layers: int
    """Layers that the LoRA changed."""
    trained_on: str | None
    """What the LoRA's file says it was trained on: dit or dit2. Both have the same shapes, so nothing else can tell."""


def merge(lora_path: Path, base: str, output: Path, *, scale: float = 1.0, max_shard_bytes: int = DEFAULT_SHARD_BYTES) -> Merged:
    """Write the base with the LoRA in it.

    Args:
        lora_path: a LoRA in any layout.
        base: the DiT: a file, a folder, a pattern, or comma-separated shards.
        output: the file to write, *.safetensors; above the size of a shard, `<name>-00001-of-0000N.safetensors` and an index.
        scale: strength of the LoRA.
        max_shard_bytes: size of a shard.

    Raises:
        RewardFLError: something is missing (exit code 66), the LoRA is another model's (78), the output exists (64), or the disk
            is too small (74).
    """
    lora, metadata = load_lora(lora_path)
    with _named_as_base():
        files = resolve_model_paths([base])[0]
        infos = _read_infos(files)
    weights = _weights_of(lora, infos, str(lora_path), base)
    shards = _plan_shards(infos, output, max_shard_bytes)
    _check_output(output, sum(info.size_bytes for info in infos.values()))
    said = {"format": "pt", "lora": lora_path.name, "lora_scale": str(scale)}
    with ExitStack() as stack:
        streams = {path: stack.enter_context(SafetensorsStream(path, part, said)) for path, part in shards.items()}
        stream_of = {key: streams[path] for path, part in shards.items() for key in part}
        for key, tensor in read_tensors(files):
            layer = weights.get(key)
            stream_of[key].write(key, tensor if layer is None else _changed(tensor, lora, layer, scale))
        for stream in streams.values():
            stream.finish()
    _write_companions(output, shards, files)
    return Merged(list(shards), len(weights), metadata.get("lora_base_model"))


def _changed(weight: Tensor, lora: Lora, layer: str, scale: float) -> Tensor:
    """Return a weight with its part of the LoRA, in its own type."""
    delta = lora[layer].delta(torch.promote_types(weight.dtype, torch.float32))
    return delta.mul_(scale).add_(weight).to(weight.dtype)


def _read_infos(files: list[Path]) -> dict[str, TensorInfo]:
    """Return what each tensor of the base is. Tensors are mapped, not read."""
    infos = {}
    for key, tensor in read_tensors(files):
        if not isinstance(tensor, Tensor) or tensor.dtype not in TYPE_NAMES:
            raise unknown(f"{files[0]}: {key!r} is no plain tensor.", "Give the files of a Wan DiT.")
        infos[key] = TensorInfo.of(tensor)
    return infos


def _weights_of(lora: Lora, infos: Mapping[str, TensorInfo], name: str, base: str) -> dict[str, str]:
    """Return the LoRA's layer of each weight of the base that it changes.

    Raises:
        RewardFLError: a layer is missing in the base, or has another shape (ModelUnknown, exit code 78).
    """
    keys = {wan_layer(key.removesuffix(WEIGHT)): key for key in infos if key.endswith(WEIGHT)}
    for layer, part in lora.items():
        if layer not in keys:
            raise bad_lora(f"{name}: trained on another model than {base}: there is no layer {layer!r}.")
        wanted, info = (part.up.shape[0], part.down.shape[1]), infos[keys[layer]]
        if info.shape != wanted:
            shapes = f"{list(wanted)} in the LoRA, {list(info.shape)} in the model"
            raise bad_lora(f"{name}: trained on another model than {base}: {layer} is {shapes}.")
        if info.dtype not in MERGEABLE:
            raise unknown(f"{base}: {layer} is {info.dtype}, to which nothing can be added.", "Give the model in bf16 or fp32.")
    return {keys[layer]: layer for layer in lora}


def _plan_shards(infos: Mapping[str, TensorInfo], output: Path, limit: int) -> dict[Path, dict[str, TensorInfo]]:
    """Return the files to write and what each holds, in the order of the base."""
    parts: list[dict[str, TensorInfo]] = [{}]
    size = 0
    for key, info in infos.items():
        if parts[-1] and size + info.size_bytes > limit:
            parts.append({})
            size = 0
        parts[-1][key] = info
        size += info.size_bytes
    if len(parts) == 1:
        return {output: parts[0]}
    names = (f"{output.stem}-{number:05}-of-{len(parts):05}{SUFFIX}" for number in range(1, len(parts) + 1))
    return {output.with_name(name): part for name, part in zip(names, parts, strict=True)}


def _check_output(output: Path, needed_bytes: int) -> None:
    """Refuse a name that is none, what exists already, and a disk that is too small."""
    if output.suffix != SUFFIX:
        raise RewardFLError(Reason.BAD_USAGE, f"{output}: not a {SUFFIX} file.", f"Name one: model{SUFFIX}.", ExitCode.USAGE)
    output.parent.mkdir(parents=True, exist_ok=True)
    refuse_existing([output, _index_path(output), *output.parent.glob(f"{output.stem}-*-of-*{SUFFIX}")])
    free = shutil.disk_usage(output.parent).free
    if free < needed_bytes:
        message = f"{output.parent}: {needed_bytes} bytes are needed and {free} are free."
        raise RewardFLError(Reason.DISK_TOO_SMALL, message, "Name a folder on a larger disk.", ExitCode.IO_ERROR)


def _index_path(output: Path) -> Path:
    """Return where the index of a sharded model lies."""
    return output.with_name(f"{output.name}.index.json")


def _write_companions(output: Path, shards: Mapping[Path, Mapping[str, TensorInfo]], files: list[Path]) -> None:
    """Write the index of a sharded model, and the sidecar of a model that has one."""
    if len(shards) > 1:
        total = sum(info.size_bytes for part in shards.values() for info in part.values())
        where = {key: path.name for path, part in shards.items() for key in part}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _index_path(output).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sidecar = files[0].with_name(files[0].name + SIDECAR_SUFFIX)
    if sidecar.is_file():
        first = next(iter(shards))
        shutil.copyfile(sidecar, first.with_name(first.name + SIDECAR_SUFFIX))


@contextmanager
def _named_as_base() -> Iterator[None]:
    """Let errors about model files speak of the base instead of the parameter that they are about in training."""
    try:
        yield
    except RewardFLError as error:
        message = error.message.replace("training.model_paths", "base")
        hint = "The base is a file, a folder, a pattern or comma-separated shards."
        raise RewardFLError(error.reason, message, hint, error.exit_code) from error
