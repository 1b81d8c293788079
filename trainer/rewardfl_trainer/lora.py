"""Low-rank adapters on a DiT, by peft: injected, switched off for the reference, kept in fp32.

The adapters' parameters are the fp32 masters that the optimizer updates. They are cast to the activations' type where they are
used: with a bf16 master, a learning rate of 2.5e-6 is below half a unit in the last place of lora_A and silently freezes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTER = "default"
"""peft's name of the adapter."""


class CastLinear(nn.Linear):
    """A linear layer whose weight is kept in one type and used in the activations'."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the weight, in the type of x."""
        return functional.linear(x, self.weight.to(x.dtype))


def check_targets(network: nn.Module, parameters: TrainingParameters) -> None:
    """Refuse a name in `lora_target_modules` that no linear layer of the network has. Needs no weights.

    Raises:
        RewardFLError: BadConfiguration, exit code 78.
    """
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    for target in parameters.lora_target_names:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = ", ".join(sorted({name.removeprefix("blocks.0.") for name in linear if name.startswith("blocks.0.")}))
            raise RewardFLError(
                Reason.BAD_CONFIGURATION,
                f"training.lora_target_modules={parameters.lora_target_modules!r}: no linear layer ends with {target!r}.",
                f"A block's linear layers are {known}.",
                ExitCode.BAD_CONFIGURATION,
            )


def add_lora(network: nn.Module, parameters: TrainingParameters, seed: int) -> None:
    """Put adapters on the layers that `lora_target_modules` names, in place. lora_B starts at zero: nothing changes yet.

    Raises:
        RewardFLError: as `check_targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - takes seconds, and caches in a folder set beforehand

    check_targets(network, parameters)
    config = LoraConfig(
        r=parameters.lora_rank,
        lora_alpha=parameters.lora_scale_numerator,
        target_modules=parameters.lora_target_names,
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for layer in lora_layers(network):
        layer.cast_input_dtype_enabled = False
        for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            part.__class__ = CastLinear
            part.to(torch.promote_types(part.weight.dtype, torch.float32))
    check_masters(network)


def lora_layers(network: nn.Module) -> "Iterator[LoraLayer]":
    """Yield the layers with an adapter."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415 - see add_lora

    for module in network.modules():
        if isinstance(module, LoraLayer):
            yield module


def check_masters(network: nn.Module) -> None:
    """Refuse a trained parameter of less than fp32: an invariant of this module."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: {parameter.dtype} master weight")


@contextmanager
def adapters_disabled(network: nn.Module) -> Iterator[None]:
    """Run the network as it was before `add_lora`."""
    layers = list(lora_layers(network))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
