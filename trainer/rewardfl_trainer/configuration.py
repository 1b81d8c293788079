"""Reads the trainer's configuration file and says what is wrong with it, one line a field. Interprets none of its values."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.job import KIND, RewardFLJob
from rewardfl_api.trainer_config import TrainerConfig

MAX_ERRORS_SHOWN = 10
MAX_VALUE_CHARACTERS = 80
_NAMED_FIELD = re.compile(r"^([a-z][a-z0-9_]*)=")
"""The models' own checks begin with the field that is wrong."""


def load(path: str | os.PathLike[str]) -> TrainerConfig:
    """Read the configuration file at `path`.

    Raises:
        RewardFLError: it cannot be read (exit code 66), or is not a valid configuration (78); one line a field.
    """
    try:
        return TrainerConfig.load(path)
    except OSError as error:
        raise RewardFLError(
            Reason.BAD_CONFIGURATION,
            f"--config={os.fspath(path)}: {error.strerror or error}",
            "Name a readable configuration file.",
            ExitCode.MISSING_INPUT,
        ) from error
    except ValidationError as error:
        raise _bad_configuration(explained(error)) from error
    except (yaml.YAMLError, ValueError) as error:
        raise _bad_configuration(f"--config={os.fspath(path)}: not a YAML mapping: {error}") from error


def read(path: Path) -> tuple[TrainerConfig, int]:
    """Return the configuration that a RewardFLJob's or a trainer's file holds, and its number of processes (1 in the latter).

    Raises:
        RewardFLError: it cannot be read (exit code 66), or is neither, or is not valid (78).
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        content = None  # configuration.load says what is wrong with it
    if content is not None and not isinstance(content, dict):
        message = f"--file={path}: neither a RewardFLJob nor a trainer's configuration."
        raise RewardFLError(Reason.BAD_CONFIGURATION, message, "Name the file of one of them.", ExitCode.BAD_CONFIGURATION)
    if content is None or content.get("kind") != KIND:
        return load(path), 1
    try:
        job = RewardFLJob.parse(content)
    except ValueError as error:
        message = f"--file={path}: {explained(error) if isinstance(error, ValidationError) else error}"
        raise RewardFLError(Reason.BAD_CONFIGURATION, message, "Change what is named.", ExitCode.BAD_CONFIGURATION) from error
    return TrainerConfig.from_job(job), job.spec.world_size


def explained(error: ValidationError) -> str:
    """Return what is wrong, one line a field."""
    return "\n".join(_line(item) for item in error.errors(include_url=False, include_context=False)[:MAX_ERRORS_SHOWN])


def _bad_configuration(message: str) -> RewardFLError:
    return RewardFLError(Reason.BAD_CONFIGURATION, message, "Change what is named.", ExitCode.BAD_CONFIGURATION)


def _line(item: ErrorDetails) -> str:
    """Return one of pydantic's errors as `training.num_frames=80: must be ...`."""
    location = [str(part) for part in item["loc"]]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and (named := _NAMED_FIELD.match(message)):
        above = location[:-1] if location and location[-1] == named[1] else location
        return ".".join([*above, message])
    field = ".".join(location)
    if item["type"] == "value_error" or isinstance(item["input"], dict | list):
        return f"{field}: {message}" if field else message
    return f"{field}={str(item['input'])[:MAX_VALUE_CHARACTERS]}: {message}"
