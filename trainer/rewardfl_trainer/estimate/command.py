"""What `rewardfl estimate` does: reads a RewardFLJob or a trainer's configuration and prints what it needs."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.job import KIND, RewardFLJob
from rewardfl_api.trainer_config import TrainerConfig

from .. import configuration
from .fit import fits
from .report import as_json, as_text
from .result import DEFAULT_TFLOPS, Estimator


def run(path: Path, output: str, gpus: int | None, tflops: float = DEFAULT_TFLOPS) -> str:
    """Return the report.

    Args:
        path: a RewardFLJob manifest or the trainer's configuration.
        output: `json`, or anything else for text.
        gpus: processes in all. None: as the job says; 1 for a trainer's configuration.
        tflops: what a GPU really computes in a second.

    Raises:
        RewardFLError: the file cannot be read (exit code 66), is not valid, or contradicts the models (78).
    """
    config, world_size = read(path)
    world_size = gpus or world_size
    with redirect_stdout(sys.stderr):  # libraries write there when they are imported, and programs read the report
        estimator = Estimator.of(config.training)
        estimate = estimator.estimate(config, world_size, tflops)
        found = fits(estimator, config, world_size)
    return json.dumps(as_json(estimate, found), indent=2) if output == "json" else as_text(estimate, found)


def read(path: Path) -> tuple[TrainerConfig, int]:
    """Return the configuration of a file and its number of processes."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        content = None  # configuration.load says what is wrong with it
    if content is not None and not isinstance(content, dict):
        message = f"--file={path}: neither a RewardFLJob nor a trainer's configuration."
        raise RewardFLError(Reason.BAD_CONFIGURATION, message, "Name the file of one of them.", ExitCode.BAD_CONFIGURATION)
    if content is None or content.get("kind") != KIND:
        return configuration.load(path), 1
    try:
        job = RewardFLJob.parse(content)
    except ValueError as error:
        message = f"--file={path}: {configuration.explained(error) if isinstance(error, ValidationError) else error}"
        raise RewardFLError(Reason.BAD_CONFIGURATION, message, "Change what is named.", ExitCode.BAD_CONFIGURATION) from error
    return TrainerConfig.from_job(job), job.spec.world_size
