"""Staging on a person's machine, for `rewardfl stage`: the same steps as in a pod, told of to nobody but the caller.

Credentials are those of the shell (boto3's chain, HF_TOKEN, MODELSCOPE_API_TOKEN); the Secret that a job names is never read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.staging.meter import Meter
from rewardfl_trainer.staging.sources import Kind, Request, folder_requests, model_list_request, model_requests, option_requests
from rewardfl_trainer.staging.stage import stage
from rewardfl_trainer.staging.staged import read_model_list

CREDENTIALS_HINT = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to what the job's Secret holds."


@dataclass(frozen=True)
class Staged:
    """Where a source lies.

    Attributes:
        parameter: the parameter that names it.
        source: the source as it is written there.
        paths: a folder, or the files of a model.
    """

    parameter: str
    source: str
    paths: list[str]


def stage_by_hand(config: TrainerConfig, folder: Path, meter: Meter) -> list[Staged]:
    """Stage what a configuration names into `folder`, and return where each source lies.

    Paths without a scheme are those of the job's pods: they are neither looked at nor returned.

    Raises:
        RewardFLError: as `stage`; where access is refused, the hint is one for a person.
    """
    there = config.copy_with(cache_dir=str(folder), work_dir=str(folder), progress=None)
    try:
        local = stage(there, Reporter(None), meter, local_paths_exist=False)
    except RewardFLError as error:
        if error.reason is not Reason.STORAGE_ACCESS_DENIED or "HF_TOKEN" in error.hint or "MODELSCOPE" in error.hint:
            raise
        raise RewardFLError(error.reason, error.message, CREDENTIALS_HINT, error.exit_code) from error
    return [
        Staged(request.parameter, request.text, _paths(request, local[request.text]))
        for request in _requests(there, local)
        if request.source.is_remote
    ]


def _paths(request: Request, local: str) -> list[str]:
    """Return a folder, or a model's files, which are comma separated."""
    return local.split(",") if request.kind in (Kind.MODEL, Kind.MODEL_LIST) else [local]


def _requests(config: TrainerConfig, local: dict[str, str]) -> Iterator[Request]:
    """Yield every source that the configuration names, in its order."""
    text = None
    if (listed := model_list_request(config)) is not None:
        yield listed
        text = read_model_list(Path(local.get(listed.text, listed.source.path)), listed)
    yield from folder_requests(config)
    yield from option_requests(config)
    for model in model_requests(config, text):
        yield from model
