"""The key layouts of LoRA files: what DiffSynth, ComfyUI and diffusers each read. Renames and scales; reads and writes no files.

A LoRA adds alpha / rank * up @ down to a layer's weight (down: [rank, in], up: [out, rank]). For the layer `blocks.0.ffn.0`:

- diffsynth: `blocks.0.ffn.0.lora_A.default.weight` and `.lora_B.`; no alpha, so the scale is put into lora_B
  (diffsynth/utils/lora/general.py).
- comfyui: `diffusion_model.blocks.0.ffn.0.lora_down.weight`, `.lora_up.weight` and `.alpha`
  (ComfyUI's comfy/lora.py and comfy/weight_adapter/lora.py).
- diffusers: `transformer.blocks.0.ffn.net.0.proj.lora_A.weight` and `.lora_B.weight`, WanTransformer3DModel's names; no alpha
  either (diffusers/loaders/lora_pipeline.py). The prefix is the same for both experts: docs/decisions/0078.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import ExportFormat

_PREFIXES = re.compile(r"^(base_model\.model\.|pipe\.dit2?\.|(model\.)?diffusion_model\.|transformer(_2)?\.)+")
"""What stands before the layer's own name: peft's, ROLL's, ComfyUI's and diffusers' prefixes."""

_KEY = re.compile(r"^(?P<layer>.+)\.((?P<part>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight|(?P<alpha>alpha))$")

_ATTENTION = {"self_attn": "attn1", "cross_attn": "attn2"}
_PROJECTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_DIFFUSERS_IN_BLOCK = {
    **{f"{ours}.{part}": f"{theirs}.{name}" for ours, theirs in _ATTENTION.items() for part, name in _PROJECTION.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_DIFFUSERS_OUTSIDE = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
}
_WAN_IN_BLOCK = {theirs: ours for ours, theirs in _DIFFUSERS_IN_BLOCK.items()}
_WAN_OUTSIDE = {theirs: ours for ours, theirs in _DIFFUSERS_OUTSIDE.items()}
_BLOCK = re.compile(r"^(?P<block>blocks\.\d+)\.(?P<rest>.+)$")


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to one layer: alpha / rank * up @ down."""

    down: Tensor
    """[rank, in]."""
    up: Tensor
    """[out, rank]."""
    alpha: float | None = None
    """None: equal to the rank."""

    @property
    def rank(self) -> int:
        """Rank of the product."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def scaled_up(self) -> Tensor:
        """`up` with the factor in it, for layouts that know no alpha."""
        return self.up if self.scale == 1.0 else (self.up.float() * self.scale).to(self.up.dtype)

    def delta(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the weight, [out, in], computed in `dtype`. A fresh tensor."""
        return (self.up.to(dtype) @ self.down.to(dtype)).mul_(self.scale)


Lora = dict[str, LowRank]
"""A LoRA by Wan's own layer names (those of the official files and of DiffSynth)."""


def read_lora(tensors: Mapping[str, Tensor], name: str) -> Lora:
    """Return the LoRA that stands in `tensors`, in any of the layouts, or as peft and ROLL write it.

    Args:
        tensors: the content of a LoRA file.
        name: what errors call it.

    Raises:
        RewardFLError: a key is none of a LoRA, a layer's pair is not whole, or its shapes disagree (ModelUnknown, exit code 78).
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None or not isinstance(tensor, Tensor):
            raise bad_lora(f"{name}: {key!r} is no weight of a LoRA.")
        part = match["alpha"] or {"lora_A": "down", "lora_B": "up"}.get(match["part"], match["part"].removeprefix("lora_"))
        found.setdefault(wan_layer(match["layer"]), {})[part] = tensor
    if not found:
        raise bad_lora(f"{name}: holds no tensors.")
    return {layer: _low_rank(parts, f"{name}: {layer}") for layer, parts in found.items()}


def _low_rank(parts: Mapping[str, Tensor], subject: str) -> LowRank:
    """Put a layer's tensors together."""
    if missing := [part for part in ("down", "up") if part not in parts]:
        words = {"down": "lora_A (or lora_down)", "up": "lora_B (or lora_up)"}
        raise bad_lora(f"{subject}: {words[missing[0]]} is missing.")
    down, up = parts["down"], parts["up"]
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1]:
        raise bad_lora(f"{subject}: {list(up.shape)} times {list(down.shape)} is no product of [out, rank] and [rank, in].")
    return LowRank(down, up, float(parts["alpha"]) if "alpha" in parts else None)


def to_layout(lora: Lora, layout: ExportFormat) -> dict[str, Tensor]:
    """Return the LoRA's tensors under the keys of a library.

    Raises:
        RewardFLError: diffusers has no such layer (ModelUnknown, exit code 78).
    """
    tensors: dict[str, Tensor] = {}
    for layer, part in lora.items():
        if layout == "comfyui":
            prefix = f"diffusion_model.{layer}"
            alpha = torch.tensor(float(part.rank) if part.alpha is None else part.alpha)
            pair = {f"{prefix}.lora_down.weight": part.down, f"{prefix}.lora_up.weight": part.up, f"{prefix}.alpha": alpha}
        elif layout == "diffusers":
            prefix = f"transformer.{diffusers_layer(layer)}"
            pair = {f"{prefix}.lora_A.weight": part.down, f"{prefix}.lora_B.weight": part.scaled_up}
        else:
            pair = {f"{layer}.lora_A.default.weight": part.down, f"{layer}.lora_B.default.weight": part.scaled_up}
        tensors |= {key: tensor.contiguous() for key, tensor in pair.items()}
    return tensors


def wan_layer(name: str) -> str:
    """Return Wan's own name of a layer that has any library's name; an unknown name comes back as it is, without prefix."""
    name = _PREFIXES.sub("", name)
    match = _BLOCK.match(name)
    if match is None:
        return _WAN_OUTSIDE.get(name, name)
    return f"{match['block']}.{_WAN_IN_BLOCK.get(match['rest'], match['rest'])}"


def diffusers_layer(layer: str) -> str:
    """Return WanTransformer3DModel's name of a layer.

    Raises:
        RewardFLError: it has no such layer (ModelUnknown, exit code 78).
    """
    match = _BLOCK.match(layer)
    name = _DIFFUSERS_OUTSIDE.get(layer) if match is None else _DIFFUSERS_IN_BLOCK.get(match["rest"])
    if name is None:
        raise bad_lora(f"{layer!r}: WanTransformer3DModel has no such layer, so there is no diffusers layout of this LoRA.")
    return name if match is None else f"{match['block']}.{name}"


def bad_lora(message: str) -> RewardFLError:
    """Return the error of a file that is no LoRA of this family."""
    hint = "Give a LoRA of a Wan DiT as this trainer, DiffSynth, ComfyUI, diffusers, peft or ROLL writes it."
    return RewardFLError(Reason.MODEL_UNKNOWN, message, hint, ExitCode.BAD_CONFIGURATION)
