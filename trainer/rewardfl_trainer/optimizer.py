"""AdamW and its learning-rate schedule from the training parameters.

Must not know what is trained or how it is spread over ranks.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from rewardfl_api.training import TrainingParameters

MIN_LEARNING_RATE_FRACTION = 0.1
"""Floor of `cosine_with_min_lr`, as a part of the peak."""
DECAY_FRACTION = 0.1
"""Part of the steps after warm-up in which `warmup_stable_decay` decays."""


class GuardedAdamW(AdamW):
    """AdamW that skips a step whose gradients are not finite, as DeepSpeed's ZeRO optimizers do themselves.

    DeepSpeed reads `overflow` after the step. Without ZeRO every rank has the same gradients, so all skip together.
    """

    overflow = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters, or leave them as they are."""
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"] if parameter.grad is not None]
        self.overflow = not all(bool(gradient.isfinite().all()) for gradient in gradients)
        return None if self.overflow else super().step(closure)


def make_optimizer(trained: Iterable[nn.Parameter], parameters: TrainingParameters, *, offloaded: bool) -> Optimizer:
    """Return AdamW over the trained parameters.

    Offloaded, it is DeepSpeed's CPU Adam where that was compiled at installation; nothing is compiled at run time.
    """
    arguments: dict[str, Any] = {
        "lr": parameters.learning_rate,
        "betas": (parameters.adam_beta1, parameters.adam_beta2),
        "eps": parameters.adam_epsilon,
        "weight_decay": parameters.weight_decay,
    }
    if offloaded and _cpu_adam_is_built():
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: PLC0415 - loads the compiled operation

        optimizer: Optimizer = DeepSpeedCPUAdam(trained, **arguments)
        return optimizer
    return GuardedAdamW(trained, **arguments)


def _cpu_adam_is_built() -> bool:
    """Whether DeepSpeed was installed with its CPU Adam compiled."""
    from deepspeed.git_version_info import installed_ops  # noqa: PLC0415 - as DeepSpeed itself

    return bool(installed_ops.get("cpu_adam", False))


def make_schedule(optimizer: Optimizer, parameters: TrainingParameters, total_steps: int) -> LRScheduler:
    """Return the learning-rate schedule by its name in transformers.

    `constant` warms up too. `total_steps` are optimizer steps, the same at every world size, so linear and cosine end at the end.
    """
    from transformers import get_scheduler  # noqa: PLC0415 - takes seconds

    name = parameters.lr_scheduler_type
    if name == "constant" and parameters.warmup_steps > 0:
        name = "constant_with_warmup"
    warmup = parameters.warmup_steps
    arguments: dict[str, Any] = {}
    if name == "cosine_with_min_lr":
        arguments = {"min_lr_rate": MIN_LEARNING_RATE_FRACTION}
    elif name == "warmup_stable_decay":
        arguments = {"num_decay_steps": max(1, math.ceil((total_steps - warmup) * DECAY_FRACTION))}
    schedule: LRScheduler = get_scheduler(name, optimizer, warmup, total_steps, arguments)
    return schedule


def advance_schedule(schedule: LRScheduler, loss: float) -> None:
    """Take one step of the schedule; the one that watches the loss is told it."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(_mean_over_ranks(loss))
    else:
        schedule.step()


def schedule_state(schedule: LRScheduler) -> dict[str, Any]:
    """Return what a schedule has to remember, as plain values."""
    state = {name: value for name, value in schedule.state_dict().items() if name != "lr_lambdas"}
    return state | {"learning_rates": [float(group["lr"]) for group in schedule.optimizer.param_groups]}


def restore_schedule(schedule: LRScheduler, state: dict[str, Any]) -> None:
    """Set a schedule, and the optimizer's learning rate, to what `schedule_state` returned.

    A schedule that depends on the number of steps alone follows its own parameters from that step on, so that they may have been
    changed; one that watches the loss goes on with all that it remembers.
    """
    schedule.last_epoch = int(state["last_epoch"])
    if isinstance(schedule, LambdaLR):
        schedule._step_count = schedule.last_epoch + 1
        rates = [base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    elif "best" in state:
        schedule.load_state_dict({name: value for name, value in state.items() if name != "learning_rates"})
        rates = list(state["learning_rates"])
    else:
        return
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _mean_over_ranks(value: float) -> float:
    """Return the mean of every rank's value: ranks with different learning rates would drift apart."""
    if not distributed.is_initialized():
        return value
    device = torch.cuda.current_device() if distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / distributed.get_world_size()
