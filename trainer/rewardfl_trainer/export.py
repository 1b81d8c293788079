"""Trained weights by name, in the layouts of the libraries that read them. Writes no files by itself.

A LoRA has DiffSynth's keys: `blocks.0.self_attn.q.lora_A.default.weight`. Readers multiply lora_B by lora_A and nothing else,
so a scale other than 1 (lora_alpha / lora_rank) is put into lora_B. At the end it is written in the other layouts as well. A
fully trained network has the keys it was loaded with in DiffSynth. Types: LoRA fp32; a full network as it computes.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from rewardfl_api.parameters import ExportFormat
from rewardfl_api.training import TrainingParameters

from .lora import ADAPTER, lora_layers
from .lora_layouts import read_lora, to_layout
from .trainable import Trainable

LORA_FILE = "lora"
FILE_OF_LAYOUT: dict[ExportFormat, str] = {
    "diffsynth": LORA_FILE,
    "comfyui": f"{LORA_FILE}-comfyui",
    "diffusers": f"{LORA_FILE}-diffusers",
}
"""Name, without suffix, of the file in each layout."""


def exported(trainable: Trainable, parameters: TrainingParameters, *, partitioned: bool) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each file, by the file's name without suffix. A collective call under ZeRO 3.

    Args:
        trainable: what is trained.
        parameters: rank and alpha of the LoRA.
        partitioned: whether ZeRO 3 spread the parameters over the ranks.
    """
    if trainable.lora_base is not None:
        scale = parameters.lora_scale_numerator / parameters.lora_rank
        return {LORA_FILE: _lora_tensors(trainable.lora_base, scale, partitioned)}
    return {name: _gathered(network.named_parameters(), partitioned) for name, network in trainable.networks.items()}


def in_layouts(files: dict[str, dict[str, Tensor]], parameters: TrainingParameters) -> dict[str, dict[str, Tensor]]:
    """Return what is written at the end: the LoRA in every layout of `export_formats`; fully trained networks as they are."""
    if LORA_FILE not in files:
        return files
    lora = read_lora(files[LORA_FILE], LORA_FILE)
    return {FILE_OF_LAYOUT[layout]: to_layout(lora, layout) for layout in parameters.export_format_names}


def _lora_tensors(network: nn.Module, scale: float, partitioned: bool) -> dict[str, Tensor]:
    """Return the LoRA's tensors, the scale in lora_B."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    parts = [part for layer in lora_layers(network) for part in (layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)]
    tensors = _gathered(((names[id(part)], part) for part in parts), partitioned)
    return {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in tensors.items()}


def _gathered(named: Iterable[tuple[str, nn.Parameter]], partitioned: bool) -> dict[str, Tensor]:
    """Copy parameters to the CPU, one at a time, so that no rank ever holds a second copy of them on its device."""
    return dict(_gather_each(named, partitioned))


def _gather_each(named: Iterable[tuple[str, nn.Parameter]], partitioned: bool) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in named:
        with _whole(parameter, partitioned), torch.no_grad():
            yield name, parameter.detach().to("cpu", copy=True).contiguous()


def _whole(parameter: nn.Parameter, partitioned: bool) -> AbstractContextManager[object]:
    """Inside, the parameter is whole."""
    if not partitioned:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters  # noqa: PLC0415 - takes seconds, and only ZeRO 3 needs it

    context: AbstractContextManager[object] = GatheredParameters(parameter)
    return context
