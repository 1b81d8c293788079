"""What is trained: a LoRA on one DiT, or all parameters of the named networks; and the untrained model that the KL holds on to.

Switches gradients on and off and keeps frozen copies. Must not compute losses or step an optimizer.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.training import TrainingParameters

from .lora import adapters_disabled, add_lora
from .models import Models
from .noise import derived_seed
from .precompute.phases import CONDITION_NETWORKS
from .sampling import Plan


@dataclass(frozen=True)
class Trainable:
    """The trained networks by name, and the models as they were before training."""

    networks: dict[str, nn.Module]
    lora_base: nn.Module | None
    """The network that carries the LoRA; None when all parameters are trained."""
    reference: Models | None
    """Frozen copies for the KL; None when there is no KL, or when the LoRA only has to be switched off."""

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return every trained parameter as (network.name, parameter), in a fixed order."""
        return [
            (f"{name}.{key}", parameter)
            for name, network in self.networks.items()
            for key, parameter in network.named_parameters()
            if parameter.requires_grad
        ]

    @property
    def trains_condition(self) -> bool:
        """Whether the condition of a video changes while training, so that it cannot be kept."""
        return any(name in self.networks for name in CONDITION_NETWORKS)

    @contextmanager
    def untrained(self) -> Iterator[None]:
        """Inside, the LoRA is switched off."""
        if self.lora_base is None:
            yield
            return
        with adapters_disabled(self.lora_base):
            yield


def make_trainable(models: Models, parameters: TrainingParameters, plan: Plan) -> Trainable:
    """Switch on the gradients that the parameters ask for. Everything else stays frozen.

    Raises:
        RewardFLError: a network that no gradient could reach, or one that is missing (exit code 78 or 66).
    """
    names = parameters.trainable_model_names
    networks = {name: models.network(name) for name in names}
    check_reached(names, plan)
    if parameters.lora_base_model is not None:
        base = networks[parameters.lora_base_model]
        add_lora(base, parameters, derived_seed("lora", parameters.seed))
        return Trainable(networks, base, None)
    reference = _frozen_copies(models, networks) if parameters.kl_weight > 0 else None
    for network in networks.values():
        network.requires_grad_(True)
    return Trainable(networks, None, reference)


def _frozen_copies(models: Models, networks: dict[str, nn.Module]) -> Models:
    """Return the models with copies in place of the networks that will be trained."""
    return replace(models, **{name: copy.deepcopy(network).requires_grad_(False) for name, network in networks.items()})


def check_reached(names: list[str], plan: Plan) -> None:
    """Refuse to train a DiT that does not denoise in the gradient window.

    Raises:
        RewardFLError: no gradient would reach it (BadConfiguration, exit code 78).
    """
    for name in names:
        if name not in ("dit", "dit2") or name in plan.window_experts:
            continue
        steps = [step for step, expert in enumerate(plan.experts) if expert == name]
        where = f"it denoises at steps {steps[0]} to {steps[-1]}" if steps else "it denoises at no step"
        raise RewardFLError(
            Reason.BAD_CONFIGURATION,
            f"training.trainable_models={name}: no gradient reaches it: {where}, and the gradient flows through steps "
            f"{plan.window.first} (mid_timestep) to {plan.window.last} (final_timestep).",
            "Change mid_timestep and final_timestep, the timestep boundaries, or trainable_models.",
            ExitCode.BAD_CONFIGURATION,
        )
