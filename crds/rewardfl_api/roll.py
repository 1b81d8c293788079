"""`rewardfl convert`: a ROLL Reward FL configuration as a RewardFLJob. Every key is used, or named with what to do instead.

Reads the configuration of ROLL's pipeline as well as the flat list of parameters in the Reward FL document. Values are kept;
where ROLL has another default than this trainer and the configuration gives none, ROLL's is written out. Looks at no other file.
"""

import ast
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from posixpath import basename, dirname
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from .job import API_VERSION, KIND, NAME_MAX_CHARACTERS, RewardFLJob
from .roll_keys import DATA, MODEL, MODULE, PARAMETER_SECTIONS, ROLL_DEFAULTS, STRATEGY, TRAINING, WITHOUT_MEANING, WORKER
from .roll_source import PRESETS, REFERENCE, bad, read
from .training import TrainingParameters
from .uris import parse_source

DEFAULT_NAME = "reward-fl"
PLACEHOLDER_BUCKET = "s3://my-bucket"
GPUS_PER_NODE = 8
MAX_CHECKPOINTS = 1000
"""Most that `save_total_limit` takes."""
METADATA = "metadata.csv"
STRATEGY_CONFIG = f"{STRATEGY}.strategy_config"

_RANGE = re.compile(r"^list\(range\((?P<arguments>[\d\s,]+)\)\)$")
_FILLED_IN = (
    "train_micro_batch_size_per_gpu",
    "train_batch_size",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "bf16",
    "fp16",
)
"""Parts of a DeepSpeed configuration that the training parameters say."""
_PATH_PARAMETERS = ("model_paths", "reward_model_path", "tokenizer_path")


@dataclass(frozen=True)
class Note:
    """A key of the configuration that the job does not hold as it was: what to do."""

    key: str
    text: str
    kept: bool = True
    """Whether the job says what the key said."""

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


@dataclass(frozen=True)
class Converted:
    """The job, and what the user should know about it."""

    job: RewardFLJob
    notes: list[Note]

    def render(self) -> str:
        """Return the job as YAML, the notes in comments above it."""
        comments = "".join(f"# {note}\n" for note in self.notes)
        body = self.job.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return comments + yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


def convert(
    text: str, *, compat: Literal["none", "roll"] = "none", dataset: str | None = None, output: str | None = None
) -> Converted:
    """Convert a ROLL configuration.

    Args:
        text: the YAML.
        compat: roll: the job computes what ROLL computed, its mistakes included.
        dataset: source of the dataset, in place of the file that the configuration names.
        output: s3:// folder for the results, which ROLL has no key for.

    Raises:
        RewardFLError: the configuration cannot be read, or a value cannot be used; every such value is named
            (BadConfiguration, exit code 78).
    """
    content = read(text)
    conversion = _Conversion(is_pipeline=WORKER in content)
    conversion.take(content, "")
    return conversion.finish(compat, dataset, output)


@dataclass
class _Conversion:
    """A conversion under way."""

    is_pipeline: bool
    """Whether this is a configuration of ROLL's pipeline; otherwise it is a flat list of parameters."""
    training: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    """Other values that are used, by their key in ROLL."""
    notes: list[Note] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def note(self, key: str, text: str) -> None:
        """Tell the user about a key."""
        self.notes.append(Note(key, text))

    def leave_out(self, key: str, why: str) -> None:
        """Tell the user about a key that the job does not keep."""
        self.notes.append(Note(key, f"left out: {why}", kept=False))

    def take(self, content: Mapping[str, Any], section: str) -> None:
        """Go through a section, and through those in it."""
        for name, value in content.items():
            key = f"{section}{name}"
            if key in WITHOUT_MEANING and (self.is_pipeline or name not in TrainingParameters.model_fields):
                if value is not None:
                    self.leave_out(f"{key}={_short(value)}", WITHOUT_MEANING[key])
            elif key in _USED:
                _USED[key](self, key, value)
            elif section in PARAMETER_SECTIONS and name in TrainingParameters.model_fields:
                self.parameter(key, name, value)
            elif isinstance(value, dict) and value:
                self.take(value, f"{key}.")
            elif isinstance(value, dict) or (value is None and _is_section(key)):
                continue
            else:
                self.leave_out(f"{key}={_short(value)}", f"unknown to ROLL's Reward FL and to the job{_did_you_mean(name)}")

    def parameter(self, key: str, name: str, value: Any) -> None:
        """Take a training parameter. null means that it is not given."""
        if value is None:
            return
        if name in self.training and self.training[name] != value:
            self.problems.append(
                f"{key}={_short(value)}: given as {_short(self.training[name])} in another section; write it once"
            )
        self.training[name] = value
        if name in _PATH_PARAMETERS and _has_local_path(value):
            self.note(f"{key}={_short(value)}", "kept: a path in the pods; mount it there, or upload it and name its s3:// URI")

    def finish(self, compat: str, dataset: str | None, output: str | None) -> Converted:
        """Put the job together.

        Raises:
            RewardFLError: see `convert`.
        """
        if self.is_pipeline:
            self._fill_in_defaults()
        self._warm_up_by_ratio()
        nodes, gpus = self._machines()
        self._check_batch(nodes * gpus)
        self._train_what_has_the_lora()
        if compat != "none":
            self.training["compat"] = compat
        name = _name(str(self.given.get("exp_name") or DEFAULT_NAME))
        spec: dict[str, Any] = {
            "nodes": nodes,
            "gpusPerNode": gpus,
            "dataset": dataset or self._dataset(name),
            "output": output or self._output(name),
            "training": {key: self.training[key] for key in TrainingParameters.model_fields if key in self.training},
        }
        if STRATEGY_CONFIG in self.given:
            spec["deepspeed"] = self._deepspeed(self.given[STRATEGY_CONFIG])
        if self.environment:
            variables = [{"name": key, "value": value} for key, value in self.environment.items()]
            spec["template"] = {"spec": {"containers": [{"name": "trainer", "env": variables}]}}
        return Converted(self._validated({"metadata": {"name": name}, "spec": spec}), self.notes)

    def _validated(self, content: dict[str, Any]) -> RewardFLJob:
        """Return the job, or raise every problem at once."""
        job = None
        try:
            job = RewardFLJob.model_validate({"apiVersion": API_VERSION, "kind": KIND, **content})
        except ValidationError as error:
            self.problems += [_sentence(detail) for detail in error.errors()]
        if job is None or self.problems:
            raise bad("; ".join(self.problems) + ".", "Change these values and convert again.")
        return job

    def _fill_in_defaults(self) -> None:
        """Write out ROLL's default where this trainer has another one."""
        for name, value in ROLL_DEFAULTS.items():
            if name not in self.training:
                self.training[name] = value
                self.note(name, f"not given: ROLL's default {value} is written out")

    def _warm_up_by_ratio(self) -> None:
        """Turn a share of the steps into steps, as ROLL does where warmup_steps is 0."""
        ratio = self.given.get(f"{TRAINING}.warmup_ratio")
        if not isinstance(ratio, int | float) or not ratio:
            return
        if self.training.get("warmup_steps"):
            self.leave_out(f"{TRAINING}.warmup_ratio={ratio}", "warmup_steps decides, as in ROLL")
            return
        steps = self.training["max_steps"]
        self.training["warmup_steps"] = math.ceil(steps * ratio) if isinstance(steps, int) else 0
        self.note(f"{TRAINING}.warmup_ratio={ratio}", f"warmup_steps={self.training['warmup_steps']}, of max_steps")

    def _machines(self) -> tuple[int, int]:
        """Return nodes and GPUs a node."""
        mapping, key = self.given.get(f"{WORKER}.device_mapping"), f"{WORKER}.device_mapping"
        per_node = self.given.get("num_gpus_per_node") or GPUS_PER_NODE
        count = _count_devices(mapping) if mapping is not None else per_node * (self.given.get("num_nodes") or 1)
        if not isinstance(count, int) or not isinstance(per_node, int) or count < 1:
            self.problems.append(f"{key}={_short(mapping)}: write list(range(0,8)) or the list of devices")
            return 1, GPUS_PER_NODE
        nodes = math.ceil(count / per_node)
        if count % nodes:
            self.problems.append(f"{key}={_short(mapping)}: {count} devices do not fill {nodes} nodes evenly; change the mapping")
        return nodes, count // nodes

    def _check_batch(self, world_size: int) -> None:
        """Leave a train_batch_size out that is several steps' worth: ROLL makes several optimizer steps of it."""
        given = self.training.get("train_batch_size")
        parts = [self.training.get(name, 1) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
        if not all(isinstance(value, int) for value in (given, *parts)):
            return
        product = math.prod(parts) * world_size
        if given != product and given % product == 0:
            del self.training["train_batch_size"]
            steps = f"ROLL makes {given // product} optimizer steps of it, and so does the job: each has {product} samples"
            self.leave_out(f"train_batch_size={given}", steps)

    def _train_what_has_the_lora(self) -> None:
        """Without trainable_models, ROLL trains the LoRA alone."""
        base = self.training.get("lora_base_model")
        if base and "trainable_models" not in self.training:
            self.training["trainable_models"] = base
            self.note("trainable_models", f"not given: {base}, which has the LoRA")

    def _dataset(self, name: str) -> str:
        """Return the folder of the dataset's table."""
        key = f"{DATA}.file_name"
        value = self.given.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None:
            self.note("dataset", f"not given: change spec.dataset, the folder that holds {METADATA}")
            return f"{PLACEHOLDER_BUCKET}/{name}/dataset/"
        if not isinstance(value, str):
            self.problems.append(f"{key}={_short(value)}: put the rows into one {METADATA}, or say --dataset")
            return f"{PLACEHOLDER_BUCKET}/{name}/dataset/"
        if basename(value) != METADATA:
            self.note(f"{key}={value}", f"the table has to be called {METADATA}; rename it")
        folder = dirname(value) or "."
        folder = folder if folder.startswith(("/", "./", "../")) or "://" in folder else f"./{folder}"
        if not parse_source(folder).is_remote:
            self.note(f"{key}={value}", "kept: a path in the pods; mount it there, or upload it and say --dataset s3://...")
        return folder

    def _output(self, name: str) -> str:
        """Return a place for the results, which has to be changed."""
        for key in ("output_dir", "checkpoint_config.output_dir"):
            if self.given.get(key) is not None:
                self.leave_out(f"{key}={self.given[key]}", "results and checkpoints go to spec.output in object storage")
        self.note("spec.output", "change it to your bucket, or say --results s3://...")
        return f"{PLACEHOLDER_BUCKET}/{name}/results/"

    def _deepspeed(self, value: Any) -> dict[str, Any]:
        """Return the preset that is named, or the configuration that is written out."""
        if not value:
            return {"preset": "zero0"}
        if isinstance(value, str) and (match := REFERENCE.fullmatch(value.strip())) and match[1].strip() in PRESETS:
            return {"preset": PRESETS[match[1].strip()]}
        if not isinstance(value, dict):
            self.problems.append(f"{STRATEGY_CONFIG}={_short(value)}: write ${{deepspeed_zero2}} or a DeepSpeed configuration")
            return {}
        config = {name: _without_auto(part) for name, part in value.items() if part != "auto" and name not in _FILLED_IN}
        left_out = [name for name in value if name not in config]
        left_out += [f"{name}.{key}" for name in config for key in _automatic(value[name])]
        if left_out:
            text = f"{', '.join(left_out)} left out: filled in from the training parameters or by DeepSpeed"
            self.notes.append(Note(STRATEGY_CONFIG, text, kept=False))
        return {"config": config}


def _use(conversion: _Conversion, key: str, value: Any) -> None:
    """Keep a value for `finish`."""
    conversion.given[key] = value


def _use_dtype(conversion: _Conversion, key: str, value: Any) -> None:
    """Take the compute type."""
    conversion.parameter(key, "dtype", value)


def _use_kept_checkpoints(conversion: _Conversion, key: str, value: Any) -> None:
    """Take the number of checkpoints that are kept. ROLL's 0 keeps all."""
    conversion.parameter(key, "save_total_limit", MAX_CHECKPOINTS if value == 0 else value)
    if value == 0:
        conversion.note(f"{key}={value}", f"save_total_limit={MAX_CHECKPOINTS}, the most")


def _expect(wanted: Any, remedy: str) -> Callable[[_Conversion, str, Any], None]:
    """Return what accepts one value alone."""

    def check(conversion: _Conversion, key: str, value: Any) -> None:
        if value not in (None, wanted):
            conversion.problems.append(f"{key}={_short(value)}: {remedy}")

    return check


def _use_environment(conversion: _Conversion, key: str, value: Any) -> None:
    """Give environment variables to the trainer; Ray's and ROLL's own mean nothing to it."""
    for name, content in (value or {}).items():
        if name.lower().startswith(("ray_", "roll_")):
            conversion.leave_out(f"{key}.{name}={_short(content)}", "there is no Ray and no ROLL here, nothing to do")
        else:
            conversion.environment[name] = str(content)


_USED: dict[str, Callable[[_Conversion, str, Any], None]] = {
    "exp_name": _use,
    "output_dir": _use,
    "checkpoint_config.output_dir": _use,
    "num_nodes": _use,
    "num_gpus_per_node": _use,
    "system_envs": _use_environment,
    f"{WORKER}.system_envs": _use_environment,
    "max_ckpt_to_keep": _use_kept_checkpoints,
    f"{WORKER}.device_mapping": _use,
    f"{TRAINING}.warmup_ratio": _use,
    f"{TRAINING}.fp16": _expect(False, "fp16 is not supported; use bf16 or fp32"),
    f"{DATA}.file_name": _use,
    f"{MODEL}.dtype": _use_dtype,
    f"{MODEL}.model_type": _expect("diffusion_module", "not Reward FL; only diffusion_module can be converted"),
    f"{STRATEGY}.strategy_name": _expect("diffusion_deepspeed_train", "only diffusion_deepspeed_train can be converted"),
    STRATEGY_CONFIG: _use,
}
"""Keys that become something else than a training parameter of the same name."""


def _is_section(key: str) -> bool:
    """Whether a key is a section that may be left empty."""
    return key in (WORKER, TRAINING, MODEL, MODULE, DATA, STRATEGY, "checkpoint_config")


def _short(value: Any) -> str:
    """Return a value for a message, on one line."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def _did_you_mean(name: str) -> str:
    """Return a known parameter of almost the same name."""
    close = difflib.get_close_matches(name, TrainingParameters.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else "; remove it"


def _has_local_path(value: Any) -> bool:
    """Whether a path among these lies neither in a bucket nor on a hub."""
    entries = value if isinstance(value, list) else [value]
    flat = [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]
    return any(part and "://" not in str(part) for part in flat)


def _count_devices(mapping: Any) -> int:
    """Return how many devices a mapping names; 0 for what is none. ROLL evaluates the text as Python, which is not done here."""
    if isinstance(mapping, str):
        match = _RANGE.match(mapping.strip())
        try:
            mapping = list(range(*ast.literal_eval(f"({match['arguments']},)"))) if match else ast.literal_eval(mapping)
        except (ValueError, TypeError, SyntaxError):
            return 0
    return len(mapping) if isinstance(mapping, list) and all(isinstance(device, int) for device in mapping) else 0


def _automatic(part: Any) -> list[str]:
    """Return the keys whose value only the transformers library fills in."""
    return [name for name, value in part.items() if value == "auto"] if isinstance(part, dict) else []


def _without_auto(part: Any) -> Any:
    """Return a part of a DeepSpeed configuration without such keys."""
    return {name: value for name, value in part.items() if value != "auto"} if isinstance(part, dict) else part


def _name(text: str) -> str:
    """Return a Kubernetes name made of an experiment's."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:NAME_MAX_CHARACTERS].rstrip("-")
    return name if name[:1].isalpha() else f"{DEFAULT_NAME}-{name}".strip("-")[:NAME_MAX_CHARACTERS]


def _sentence(detail: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors as field, value and remedy."""
    where = ".".join(str(part) for part in detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    value = "" if isinstance(detail["input"], dict) else f"={_short(detail['input'])}"
    return f"{where}{value}: {message}"
