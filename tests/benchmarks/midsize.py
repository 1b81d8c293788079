"""A mid-size family made from the tiny one without training: networks k times as wide, and deeper, that compute the same.

Widening repeats every feature k times: a linear layer becomes k x k copies of its weight divided by k, normalisations see the
same mean and variance, attention gets k times as many heads of the same size. Deepening adds blocks whose last layers are zero.
All weights are dense, so the cost is that of any network of this size, and the generated videos still show faces.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rewardfl_trainer.tiny.spec import DIT_KWARGS, MODEL_FOLDER

WIDTH_FACTOR = 3
EXTRA_BLOCKS = 12
EXPERTS = ("high_noise_model", "low_noise_model")
LAST_LAYERS = ("self_attn.o.", "cross_attn.o.", "ffn.2.")
"""Of a block: what they return is added to the stream."""


def write(tiny: Path, target: Path) -> None:
    """Write the mid-size family into `target`: the tiny family of `tiny` with both experts grown."""
    shutil.copytree(tiny, target, dirs_exist_ok=True)
    kwargs = {
        **DIT_KWARGS,
        "dim": DIT_KWARGS["dim"] * WIDTH_FACTOR,
        "ffn_dim": DIT_KWARGS["ffn_dim"] * WIDTH_FACTOR,
        "num_heads": DIT_KWARGS["num_heads"] * WIDTH_FACTOR,
        "num_layers": DIT_KWARGS["num_layers"] + EXTRA_BLOCKS,
    }
    for expert in EXPERTS:
        folder = target / MODEL_FOLDER / expert
        shards = sorted(folder.glob("*.safetensors"))
        tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
        grown = deepened({name: widened(name, tensor) for name, tensor in tensors.items()})
        names = sorted(grown)
        for number, shard in enumerate(shards):
            part = {name: grown[name].contiguous() for name in names[number :: len(shards)]}
            save_file(part, shard)
        sidecar: dict[str, Any] = {"model_name": "wan_video_dit", "extra_kwargs": kwargs}
        Path(f"{shards[0]}.config.json").write_text(json.dumps(sidecar), encoding="utf-8")


INPUT_LAYERS = ("patch_embedding.weight", "text_embedding.0.weight", "time_embedding.0.weight")
"""Only what comes out of them are features."""


def widened(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor of the DiT with its features repeated."""
    k, width = WIDTH_FACTOR, DIT_KWARGS["dim"]
    if name == "head.head.bias":
        return tensor
    if name == "head.head.weight":
        return tensor.repeat(1, k) / k
    if name in INPUT_LAYERS:
        return tensor.repeat(k, *(1 for _ in tensor.shape[1:]))
    if name.startswith("time_projection.1."):  # six vectors of features in a row
        return torch.cat([widened("", part) for part in tensor.split(width)])
    if name.endswith("modulation"):
        return tensor.repeat(1, 1, k)
    return tensor.repeat(k) if tensor.ndim == 1 else tensor.repeat(k, k) / k


def deepened(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with blocks added that change nothing: copies of the last one, their last layers zero."""
    last = f"blocks.{DIT_KWARGS['num_layers'] - 1}."
    found = dict(tensors)
    for number in range(DIT_KWARGS["num_layers"], DIT_KWARGS["num_layers"] + EXTRA_BLOCKS):
        for name, tensor in tensors.items():
            if name.startswith(last):
                inner = name.removeprefix(last)
                found[f"blocks.{number}.{inner}"] = torch.zeros_like(tensor) if inner.startswith(LAST_LAYERS) else tensor.clone()
    return found
