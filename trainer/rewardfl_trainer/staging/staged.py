"""staged.json: where each source lies. Written when everything is there, read by the trainer; needs no storage client."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import STAGED_FILE, TrainerConfig
from rewardfl_trainer.staging.sources import (
    Request,
    folder_requests,
    has_remote,
    is_remote_text,
    model_list_request,
    model_requests,
    option_requests,
)


def write_staged(config: TrainerConfig, local: Mapping[str, str]) -> Path:
    """Write staged.json whole or not at all; return its path."""
    path = Path(config.work_dir) / STAGED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.part")
    fresh.write_text(json.dumps(local, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def localize(config: TrainerConfig) -> TrainerConfig:
    """Return `config` with every source replaced by the local path that it was staged to.

    Equal to `config` when nothing in it is remote. A model that is staged becomes the comma-separated list of its files.

    Raises:
        RewardFLError: a source has not been staged.
    """
    folders, options, listed = folder_requests(config), option_requests(config), model_list_request(config)
    text = None
    if listed is not None:
        staged = _read_staged(config) if listed.source.is_remote else {}
        text = read_model_list(Path(_local(listed, staged)), listed)
    models = model_requests(config, text)
    if not has_remote([*folders, *options, *(request for model in models for request in model)]) and not (
        listed and listed.source.is_remote
    ):
        return config
    staged = _read_staged(config)
    dataset, reward_model_path, tokenizer_path, *evaluation = (_local(request, staged) for request in folders)
    training = config.training.copy_with(
        model_paths=[",".join(_local(request, staged) for request in model) for model in models],
        model_id_with_origin_paths=None,
        reward_model_path=reward_model_path,
        tokenizer_path=tokenizer_path,
        eval_dataset=evaluation[0] if evaluation else None,
        rewards=_local_rewards(config, staged),
    )
    return config.copy_with(dataset=dataset, training=training)


def _local_rewards(config: TrainerConfig, staged: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """Return the rewards with local paths among their options."""
    if config.training.rewards is None:
        return None
    paths = {request.text: _local(request, staged) for request in option_requests(config)}
    rewards = [spec.model_dump(by_alias=False) for spec in config.training.rewards]
    for reward in rewards:
        options = reward["options"] or {}
        reward["options"] = {name: paths[value] if is_remote_text(value) else value for name, value in options.items()} or None
    return rewards


def read_model_list(path: Path, request: Request) -> str:
    """Return the content of the JSON file that lists the models.

    Raises:
        RewardFLError: it cannot be read (exit code 66).
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "Name a readable JSON file that lists the models."
        raise RewardFLError(Reason.MODEL_NOT_FOUND, f"{request.subject}: {error}", hint, ExitCode.MISSING_INPUT) from error


def _read_staged(config: TrainerConfig) -> dict[str, str]:
    path = Path(config.work_dir) / STAGED_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _not_staged(
            f"work_dir={config.work_dir}: holds no {STAGED_FILE}, and the configuration has remote sources"
        ) from error
    except ValueError as error:
        raise _not_staged(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise _not_staged(f"{path}: must be an object of paths")
    return content


def _local(request: Request, staged: Mapping[str, str]) -> str:
    """Return the local path of a source."""
    if not request.source.is_remote:
        return request.source.path
    if request.text not in staged:
        raise _not_staged(f"{request.subject}: was not staged")
    return staged[request.text]


def _not_staged(message: str) -> RewardFLError:
    hint = "Run `python -m rewardfl_trainer.staging --config FILE` with the same configuration first."
    return RewardFLError(Reason.BAD_USAGE, message, hint, ExitCode.USAGE)
