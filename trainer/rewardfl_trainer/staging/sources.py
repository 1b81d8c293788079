"""What a configuration names: one request for each source in it. Looks at nothing but the configuration and a model list."""

import json
import os
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import split_names
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import Source, parse_source

DEFAULT_TOKENIZER = "hf://Wan-AI/Wan2.1-T2V-1.3B:google/umt5-xxl/*"
"""The tokenizer that Wan2.2's text encoder was trained with; `tokenizer_path` is empty."""

HUB_VARIABLE = "DIFFSYNTH_DOWNLOAD_SOURCE"
"""Hub of `model_id_with_origin_paths`, by DiffSynth's variable: huggingface (here the default) or modelscope."""

HUBS = {"huggingface": "hf", "modelscope": "ms"}
REMOTE_PREFIXES = ("s3://", "hf://", "ms://")
WILDCARD = re.compile(r"[*?\[]")


class Kind(StrEnum):
    """What a source is for, which decides which of its files are needed."""

    DATASET = "dataset"
    REWARD = "reward"
    TOKENIZER = "tokenizer"
    OPTION = "reward option"
    MODEL_LIST = "model list"
    MODEL = "model"


@dataclass(frozen=True)
class Request:
    """One source that a parameter names."""

    parameter: str
    """The parameter, for messages: `training.model_paths[0]`."""
    text: str
    """The source as it is written; its key in staged.json."""
    kind: Kind
    """What it is for."""
    source: Source
    """The source, parsed."""

    @property
    def subject(self) -> str:
        """The beginning of every message about this source."""
        return f"{self.parameter}={self.text}"


def make_request(parameter: str, text: str, kind: Kind) -> Request:
    """Return the request for one source.

    Raises:
        RewardFLError: the text is none of the known forms (exit code 78).
    """
    try:
        return Request(parameter, text, kind, parse_source(text))
    except ValueError as error:
        raise _bad(f"{parameter}: {error}", "Write s3://bucket/key, hf://org/name[@revision][:pattern] or a path.") from error


def folder_requests(config: TrainerConfig) -> list[Request]:
    """Return the requests for dataset, reward models and tokenizer, and the evaluation dataset where there is one."""
    training = config.training
    evaluation = training.eval_dataset
    return [
        make_request("dataset", config.dataset, Kind.DATASET),
        make_request("training.reward_model_path", training.reward_model_path, Kind.REWARD),
        make_request("training.tokenizer_path", training.tokenizer_path or DEFAULT_TOKENIZER, Kind.TOKENIZER),
        *([make_request("training.eval_dataset", evaluation, Kind.DATASET)] if evaluation else []),
    ]


def option_requests(config: TrainerConfig) -> list[Request]:
    """Return the requests for what rewards are given by URI among their options, for example a network of their own."""
    return [
        make_request(f"training.rewards[{index}].options.{name}", value, Kind.OPTION)
        for index, spec in enumerate(config.training.rewards or [])
        for name, value in (spec.options or {}).items()
        if is_remote_text(value)
    ]


def is_remote_text(value: object) -> TypeGuard[str]:
    """Whether an option is a source that has to be staged; of any other value only its reward knows the meaning."""
    return isinstance(value, str) and value.startswith(REMOTE_PREFIXES)


def model_list_request(config: TrainerConfig) -> Request | None:
    """Return the request for the JSON file that lists the models; None when they are listed inline."""
    paths = config.training.model_paths or []
    if len(paths) == 1 and paths[0].endswith(".json"):
        return make_request("training.model_paths", paths[0], Kind.MODEL_LIST)
    return None


def model_requests(config: TrainerConfig, model_list: str | None = None) -> list[list[Request]]:
    """Return the requests for the models, in the order given: one list a model, with a request for each of its parts.

    Args:
        config: the configuration.
        model_list: the content of the JSON file, where `model_list_request` names one.

    Raises:
        RewardFLError: the file is not such a list, or an entry is no source (exit code 78).
    """
    listed = model_list_request(config)
    if listed is None:
        entries = [split_names(entry) for entry in config.training.model_paths or []]
    else:
        entries = [[_beside(listed, part) for part in parts] for parts in _read_list(listed, model_list or "")]
    models = [
        [make_request(f"training.model_paths[{index}]", part, Kind.MODEL) for part in parts]
        for index, parts in enumerate(entries)
    ]
    from_hub = split_names(config.training.model_id_with_origin_paths)
    return models + [[make_request("training.model_id_with_origin_paths", _hub_uri(entry), Kind.MODEL)] for entry in from_hub]


def needs_model_list(config: TrainerConfig) -> bool:
    """Whether the models are listed in a JSON file."""
    return model_list_request(config) is not None


def has_remote(requests: Iterable[Request]) -> bool:
    """Whether any of the sources has to be staged."""
    return any(request.source.is_remote for request in requests)


def _read_list(request: Request, content: str) -> list[list[str]]:
    """Parse ROLL's form: a list (or an object) with a path, or the list of a model's shards, for each model."""
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise _bad(f"{request.subject}: not JSON: {error}", "It must hold a list of paths or URIs.") from error
    entries = list(parsed.values()) if isinstance(parsed, dict) else parsed
    if not isinstance(entries, list) or not entries:
        raise _bad(f"{request.subject}: must hold a list of paths or URIs", "See ROLL's wan22_paths.json.")
    return [_parts(request, entry) for entry in entries]


def _parts(request: Request, entry: object) -> list[str]:
    parts = split_names(entry) if isinstance(entry, str) else entry
    if isinstance(parts, list) and parts and all(isinstance(part, str) and part for part in parts):
        return parts
    raise _bad(f"{request.subject}: {entry!r} is neither a path nor a list of paths", "Name the files of one model.")


def _beside(request: Request, entry: str) -> str:
    """Return `entry` of a model list as a source; a relative path is relative to the list's own folder."""
    if "://" in entry or entry.startswith("/"):
        return entry
    source = request.source
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source.path), entry))
    if source.is_remote and (path == ".." or path.startswith("../")):
        raise _bad(f"{request.subject}: {entry!r} leads outside its bucket or repository", "Write the whole URI.")
    path = f"{path}/" if entry.endswith("/") else path
    match source.scheme:
        case "s3":
            return f"s3://{source.location}/{path}"
        case "hf" | "ms":
            return f"{source.scheme}://{source.location}{f'@{source.revision}' if source.revision else ''}:{path}"
        case "file":
            return path


def _hub_uri(entry: str) -> str:
    """Return `id:pattern` as the URI of the hub that is used."""
    if "://" in entry:
        return entry
    name = os.environ.get(HUB_VARIABLE, "huggingface").lower()
    if name not in HUBS:
        raise _bad(f"{HUB_VARIABLE}={name}: unknown hub", f"Use {' or '.join(HUBS)}.")
    return f"{HUBS[name]}://{entry}"


def _bad(message: str, hint: str) -> RewardFLError:
    return RewardFLError(Reason.BAD_CONFIGURATION, message, hint, ExitCode.BAD_CONFIGURATION)
