"""DeepSpeed around what is trained: gradient accumulation, ZeRO, clipping, the optimizer step, and the steps that are skipped.

Under ZeRO 0 to 2 the engine is given the trained parameters alone: the frozen networks stay out of its casts, broadcasts and
partitions. ZeRO 3 needs the trained network itself, whose frozen weights it spreads over the ranks as well.
Must not know what a loss is made of.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from .engine_state import EngineState
from .environment import Process
from .optimizer import advance_schedule, make_optimizer, make_schedule
from .timing import Stopwatch
from .trainable import Trainable

OutcomeT = TypeVar("OutcomeT")

ZERO3 = 3
DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's default of reduce_bucket_size."""
NEVER = 10**12
"""Steps between two of DeepSpeed's own progress lines."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepReport:
    """What an optimizer step did."""

    applied: bool
    """False when the loss or a gradient was not finite on any rank: nothing was changed."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    """With which the step was made."""


class Held(nn.Module):
    """Holds what is trained, and runs what it is given: the engine's hooks then see forward passes of any shape."""

    def __init__(self, trainable: Trainable, *, whole_networks: bool) -> None:
        super().__init__()
        if whole_networks:
            self.networks = nn.ModuleDict(trainable.networks)
        else:
            self.trained = nn.ParameterList([parameter for _, parameter in trainable.parameters()])

    def forward(self, function: Callable[[], Any]) -> Any:
        """Return function()."""
        return function()


class Engine:
    """Trains: `accumulate` once a sample, `step` once a global batch.

    Args:
        trainable: what is trained; its parameters stay the same objects.
        config: the DeepSpeed section and the training parameters.
        process: rank, world size and device.
        total_steps: optimizer steps of the whole run, for the schedule.
        stopwatch: is told the seconds of backward passes and updates.

    Raises:
        RewardFLError: the batch sizes contradict each other, or DeepSpeed refuses its section (exit code 78).
    """

    def __init__(
        self,
        trainable: Trainable,
        config: TrainerConfig,
        process: Process,
        total_steps: int,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        import deepspeed  # noqa: PLC0415 - takes seconds, and reads the prepared environment

        self.stopwatch = stopwatch or Stopwatch(process.device)
        parameters = config.training
        self.trained = [parameter for _, parameter in trainable.parameters()]
        section = deepspeed_section(config, process.world_size, full=trainable.lora_base is None)
        section = fitting_buckets(section, sum(parameter.numel() for parameter in self.trained))
        zero = section.get("zero_optimization", {})
        self.zero_stage = int(zero.get("stage", 0))
        offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        whole = self.zero_stage == ZERO3 or trainable.lora_base is None
        held = Held(trainable, whole_networks=whole)
        self.optimizer = make_optimizer(self.trained, parameters, offloaded=offloaded)
        try:
            self.deepspeed, *_ = deepspeed.initialize(
                model=held, optimizer=self.optimizer, config=section, dist_init_required=False
            )
        except (ValueError, AssertionError) as error:
            raise _bad_section(str(error)) from error
        self.schedule = make_schedule(self.optimizer, parameters, total_steps)
        self.state = EngineState(trainable.parameters(), self.optimizer, self.deepspeed.optimizer, process)
        self.micro_steps = section["gradient_accumulation_steps"]

    def accumulate(self, function: Callable[[], tuple[Tensor, OutcomeT]]) -> OutcomeT:
        """Run one sample forward and backward.

        Args:
            function: returns the loss and what else is to be returned.
        """
        result: tuple[Tensor, OutcomeT] = self.deepspeed(function)
        loss, outcome = result
        # A loss that is not finite must spoil the gradients, so that the ranks agree to skip the step.
        with self.stopwatch.part("backward"):
            self.deepspeed.backward(loss if bool(loss.isfinite()) else loss * math.nan)
        return outcome

    def step(self, loss: float) -> StepReport:
        """Close a sample; after the last one of a global batch, update the parameters.

        Args:
            loss: mean loss of the batch, for a schedule that watches it.
        """
        norm = self._own_norm() if self.zero_stage == 0 else None
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        with self.stopwatch.part("optimise"):
            self.deepspeed.step()
        applied = bool(self.deepspeed.was_step_applied())
        if applied:
            advance_schedule(self.schedule, loss)
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
        return StepReport(applied, math.nan if norm is None else float(norm), learning_rate)

    def close_sample(self) -> None:
        """Close a sample that is not the last one of a global batch."""
        self.deepspeed.step()

    def _own_norm(self) -> float:
        """Return the norm of the gradients, which every rank has whole when there is no ZeRO."""
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0


def deepspeed_section(config: TrainerConfig, world_size: int, *, full: bool) -> dict[str, Any]:
    """Return DeepSpeed's configuration with batch sizes, precision and clipping filled in.

    A sample is one micro step: `per_device_train_batch_size` samples are run one after the other (docs/decisions/0030). LoRA
    parameters are fp32 masters themselves; full training in bf16 leaves the fp32 masters to DeepSpeed.
    """
    parameters = config.training
    check_section(config, world_size)
    section = copy.deepcopy(config.deepspeed)
    if "zero_optimization" in section:
        section["zero_optimization"] = zero_section(section)
    for ours in ("optimizer", "scheduler", "fp16"):
        if section.pop(ours, None) is not None:
            logger.warning("deepspeed.%s is ignored: the training parameters say it", ours)
    accumulation = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps
    section.update(
        train_micro_batch_size_per_gpu=1,
        gradient_accumulation_steps=accumulation,
        train_batch_size=accumulation * world_size,
        gradient_clipping=parameters.max_grad_norm,
        steps_per_print=NEVER,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,
        bf16={"enabled": full and parameters.dtype == "bf16"},
    )
    if config.device == "cpu":
        for offload in ("offload_optimizer", "offload_param"):
            section.get("zero_optimization", {}).get(offload, {}).pop("pin_memory", None)
    return section


def check_section(config: TrainerConfig, world_size: int) -> None:
    """Refuse batch sizes that contradict each other, and what checkpoints cannot be made of. Needs no network.

    Raises:
        RewardFLError: BadConfiguration, exit code 78.
    """
    _check_batch_size(config.training, world_size)
    _check_offload(zero_section(config.deepspeed))


def zero_section(section: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of the part about ZeRO without what is `auto` or an offload of null: DeepSpeed's defaults, which it means.

    Raises:
        RewardFLError: what is read of it here has a form that DeepSpeed refuses (BadConfiguration, exit code 78).
    """
    zero = section.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise _bad_section(f"zero_optimization={zero!r}: must be an object, e.g. stage: 2")
    zero = {name: copy.deepcopy(value) for name, value in zero.items() if value != "auto"}
    for name in LEAST_STAGE:
        if zero.get(name, {}) is None:
            del zero[name]
        elif not isinstance(zero.get(name, {}), dict):
            raise _bad_section(f"zero_optimization.{name}={zero[name]!r}: must be an object, e.g. device: cpu")
    for name, (least, most) in WHOLE_NUMBERS.items():
        if name in zero and not _is_whole(zero[name], least, most):
            wanted = f"a whole number from {least}" + (f" to {most}" if most is not None else "")
            raise _bad_section(f"zero_optimization.{name}={zero[name]!r}: must be {wanted}")
    return zero


def _is_whole(value: object, least: int, most: int | None) -> bool:
    """Whether DeepSpeed reads a value as a whole number within bounds: 5e8 is one in YAML or JSON, the text "5e8" is not."""
    try:
        number = int(value)  # type: ignore[call-overload]
        return not isinstance(value, bool) and number == float(value) and least <= number <= (number if most is None else most)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def fitting_buckets(section: dict[str, Any], num_trained: int) -> dict[str, Any]:
    """Return the section with gradient buckets no larger than the gradients: DeepSpeed allocates all that it is told (2 GB)."""
    zero = dict(section.get("zero_optimization", {}))
    if int(zero.get("stage", 0)) == 0:
        return section
    zero["reduce_bucket_size"] = min(int(zero.get("reduce_bucket_size", DEFAULT_BUCKET)), num_trained)
    return {**section, "zero_optimization": zero}


def _check_batch_size(parameters: TrainingParameters, world_size: int) -> None:
    """The global batch, where it is given, must be the product of its parts."""
    product = parameters.per_device_train_batch_size * parameters.gradient_accumulation_steps * world_size
    if parameters.train_batch_size not in (None, product):
        raise RewardFLError(
            Reason.BAD_CONFIGURATION,
            f"training.train_batch_size={parameters.train_batch_size}: must equal per_device_train_batch_size "
            f"{parameters.per_device_train_batch_size} * gradient_accumulation_steps {parameters.gradient_accumulation_steps} * "
            f"world size {world_size} = {product}.",
            "Change one of them, or leave train_batch_size out.",
            ExitCode.BAD_CONFIGURATION,
        )


WHOLE_NUMBERS: dict[str, tuple[int, int | None]] = {
    "stage": (0, ZERO3),
    "reduce_bucket_size": (1, None),
    "stage3_max_live_parameters": (0, None),
}
"""Numbers of ZeRO's section that are read here, with their bounds."""

LEAST_STAGE = {"offload_optimizer": 1, "offload_param": ZERO3}
"""ZeRO stages from which on DeepSpeed can keep something in CPU memory."""


def _check_offload(zero: dict[str, Any]) -> None:
    """DeepSpeed must know how to offload what the section says, and to memory: checkpoints hold the optimizer's state."""
    stage = int(zero.get("stage", 0))
    for section, least in LEAST_STAGE.items():
        device = (zero.get(section) or {}).get("device", "none")
        if device == "nvme":
            raise _bad_section(f"zero_optimization.{section}.device=nvme: is not supported; use cpu")
        if device != "none" and stage < least:
            raise _bad_section(f"zero_optimization.{section}.device={device}: needs stage {least} or higher; stage is {stage}")


def _bad_section(problem: str) -> RewardFLError:
    """Return the error of a DeepSpeed section that DeepSpeed refuses."""
    return RewardFLError(
        Reason.BAD_CONFIGURATION,
        f"deepspeed: {' '.join(problem.split())}",
        "Use a preset (zero0 to zero3_cpuoffload), or correct the section.",
        ExitCode.BAD_CONFIGURATION,
    )
