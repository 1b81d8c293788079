"""Compares the estimate with the GPU that is there, before anything heavy runs.

A run whose tensors cannot fit is refused; one that may not fit is warned of, since the allocator's waste is not known exactly. On
a CPU nothing is estimated: memory is not what runs out there, and a test should not wait for it.
"""

import logging

import torch

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig

from ..collective import on_main, smallest
from ..environment import Process
from .fit import fit_to, needed_bytes
from .result import Estimator

GIGA = 1e9

logger = logging.getLogger(__name__)


def check_memory(config: TrainerConfig, process: Process) -> None:
    """Estimate the run, once for all ranks, and compare it with the smallest of their GPUs, CUDA devices. A collective call.

    Raises:
        RewardFLError: more is needed than the GPU has (BadConfiguration, exit code 78); the hint names what would fit.
    """
    available = smallest(process, torch.cuda.get_device_properties(process.device).total_memory)
    on_main(process, lambda: _check(config, process.world_size, available))


def _check(config: TrainerConfig, world_size: int, available: float) -> None:
    """Compare the run with `available` bytes. What cannot be estimated, such as a reward that wants data, is not refused."""
    try:
        compare(Estimator.of(config.training), config, world_size, available)
    except RewardFLError:
        raise
    except Exception as error:  # rewards may be anybody's code: they need not run on shapes
        logger.warning("the memory that is needed could not be estimated: %s: %s", type(error).__name__, error)


def compare(estimator: Estimator, config: TrainerConfig, world_size: int, available: float) -> None:
    """Refuse, or warn of, what does not fit `available` bytes.

    Raises:
        RewardFLError: see `check_memory`.
    """
    estimate = estimator.estimate(config, world_size)
    needed = needed_bytes(estimate)
    moment = estimate.worst.name
    text = f"about {needed / GIGA:.1f} GB of GPU memory are needed ({moment}), and there are {available / GIGA:.1f} GB"
    if needed <= available:
        logger.info("%s", text)
        return
    fit = fit_to(estimator, config, world_size, available)
    hint = f"These settings fit: {fit.settings}." if fit.settings else "Use fewer frames or pixels, or a larger GPU."
    if estimate.peak_bytes <= available:
        logger.warning("%s. %s", text, hint)
        return
    raise RewardFLError(Reason.BAD_CONFIGURATION, f"deepspeed, training: {text}.", hint, ExitCode.BAD_CONFIGURATION)
