"""AdamW and its learning-rate schedule from the training parameters.

Must not know what is trained or how it is spread over ranks.
"""

import math
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from rewardfl_api.training import TrainingParameters

MIN_LEARNING_RATE_FRACTION = 0.1
"""Floor of `cosine_with_min_lr`, `cosine_warmup_with_min_lr` and `greedy`, as a part of the peak."""
POLYNOMIAL_END = 1e-7
"""Where `polynomial` ends in transformers; with a peak below ten times that, a tenth of the peak."""
WATCHING = ("reduce_lr_on_plateau", "greedy")
"""Schedules that watch the loss."""
CPU_ADAM = "deepspeed.ops.adam.cpu_adam_op"
"""Where DeepSpeed's own installation puts the compiled operation, and docker/cpu_adam.py."""
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
        # One question to the device: 800 of them, one a gradient, would each wait for it.
        self.overflow = bool(gradients) and not bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all())
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
    if offloaded and _load_cpu_adam():
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # noqa: PLC0415 - loads the compiled operation

        optimizer: Optimizer = DeepSpeedCPUAdam(trained, **arguments)
        return optimizer
    return GuardedAdamW(trained, **arguments)


def _load_cpu_adam() -> bool:
    """Load DeepSpeed's CPU Adam; False where none was compiled.

    DeepSpeed itself loads a compiled operation only under the accelerator that it was compiled under, and compiles it anew else.
    This one computes on the processor whatever the accelerator is, and neither image nor node need have a compiler.
    """
    if find_spec(CPU_ADAM) is None:
        return False
    from deepspeed.ops.op_builder.builder import OpBuilder  # noqa: PLC0415 - as DeepSpeed itself

    OpBuilder._loaded_ops.setdefault("cpu_adam", import_module(CPU_ADAM))
    return True


class LossWatcher(LRScheduler):
    """A schedule that reacts to the loss, after a linear warm-up, which transformers gives such schedules none of.

    Args:
        schedule: reacts to the loss that its `step` is told, from the peak on.
        warmup_steps: steps over which the learning rate rises from 0 to the peak; the loss is not looked at in them.
    """

    def __init__(self, schedule: Any, warmup_steps: int) -> None:  # torch's own would take a first step
        self.schedule, self.optimizer, self.warmup_steps = schedule, schedule.optimizer, warmup_steps
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.last_epoch = 0
        self._warm_up()

    def step(self, loss: Any = None) -> None:
        """Take a step: the next one of the warm-up, or what the loss calls for."""
        self.last_epoch += 1
        if self.last_epoch <= self.warmup_steps:
            self._warm_up()
        else:
            self.schedule.step(loss)

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rates of the next step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return how far it is, and what the schedule remembers."""
        return {"last_epoch": self.last_epoch, "watching": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; after another kind of schedule, from the peak or amid the warm-up."""
        self.last_epoch = int(state_dict["last_epoch"])
        if "watching" in state_dict:
            self.schedule.load_state_dict(state_dict["watching"])
        self._warm_up()

    def _warm_up(self) -> None:
        """Set the learning rate of this step of the warm-up, or the peak when it is over."""
        part = min(1.0, self.last_epoch / self.warmup_steps) if self.warmup_steps else 1.0
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base * part


def make_schedule(optimizer: Optimizer, parameters: TrainingParameters, total_steps: int) -> LRScheduler:
    """Return the learning-rate schedule by its name in transformers.

    Each warms up, `constant` and those that watch the loss too. `total_steps` are optimizer steps, the same at every world size,
    so linear and cosine end at the end.
    """
    from transformers import get_scheduler  # noqa: PLC0415 - takes seconds

    name, warmup, peak = parameters.lr_scheduler_type, parameters.warmup_steps, parameters.learning_rate
    if peak == 0:
        name = "constant"  # any schedule of nothing is nothing, but not every one of transformers' can be made of it
    if name == "constant" and warmup > 0:
        name = "constant_with_warmup"
    schedule: LRScheduler = get_scheduler(name, optimizer, warmup, total_steps, _arguments(name, peak, total_steps - warmup))
    return LossWatcher(schedule, warmup) if name in WATCHING else schedule


def _arguments(name: str, peak: float, steps_left: int) -> dict[str, Any]:
    """Return what a schedule of transformers takes beside the steps; `steps_left` come after the warm-up."""
    match name:
        case "cosine_with_min_lr" | "cosine_warmup_with_min_lr":
            return {"min_lr_rate": MIN_LEARNING_RATE_FRACTION}
        case "greedy":
            return {"min_lr": MIN_LEARNING_RATE_FRACTION * peak, "max_lr": peak, "eps": 0.0}
        case "polynomial":
            return {"lr_end": min(POLYNOMIAL_END, MIN_LEARNING_RATE_FRACTION * peak)}
        case "warmup_stable_decay":
            return {"num_decay_steps": max(1, math.ceil(steps_left * DECAY_FRACTION))}
        case _:
            return {}


def advance_schedule(schedule: LRScheduler, loss: float) -> None:
    """Take one step of the schedule; the one that watches the loss is told it."""
    if isinstance(schedule, LossWatcher):
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
    elif isinstance(schedule, LossWatcher):
        schedule.load_state_dict(state)
        rates = list(state["learning_rates"]) if "watching" in state else schedule.get_last_lr()
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
