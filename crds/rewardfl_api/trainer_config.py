"""The file that the operator hands to the trainer image, and where things lie in its pods.

In the cluster it is the key config.yaml of the ConfigMap `<job>-config`.
Also written by hand: `python -m rewardfl_trainer.train --config config.yaml` needs no cluster.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationInfo, model_validator

from .base import ApiModel
from .contradictions import report
from .deepspeed import preset_config
from .guard import Guard, contradictions
from .job import RewardFLJob
from .parameters import PathText
from .spec import Quantity, Storage
from .training import TrainingParameters

CONFIG_KEY = "config.yaml"
CONFIG_PATH = "/etc/rewardfl/config.yaml"
CACHE_DIR = "/var/cache/rewardfl"
WORK_DIR = "/var/lib/rewardfl"
TERMINATION_LOG = "/dev/termination-log"
STAGED_FILE = "staged.json"
"""Name, in the work folder, of the JSON object that maps each staged source to its local path."""

_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's, where PyYAML was built with it: ten times as fast."""


class ProgressTarget(ApiModel):
    """The ConfigMap that progress is reported to."""

    namespace: Annotated[str, Field(max_length=63)]
    """Its namespace."""
    config_map: Annotated[str, Field(max_length=253)]
    """Its name."""


class TrainerConfig(ApiModel):
    """Everything that `stage` and `train` are told."""

    name: Annotated[str, Field(max_length=253)] = "rewardfl"
    """Name of the job, for logs and reports."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where to train: cuda with nccl, or cpu with gloo."""
    storage: Storage = Field(default_factory=Storage)
    """Object storage. Credentials come from boto3's chain, never from this file."""
    dataset: PathText
    """Folder with metadata.csv and the videos: a path or a URI."""
    output: PathText
    """Folder that results are written to: a path or an s3:// URI."""
    cache_dir: PathText = CACHE_DIR
    """Folder that sources are staged into."""
    cache_max_size: Quantity | None = None
    """Upper limit of the staged files in it, e.g. 500Gi. None: the disk's."""
    work_dir: PathText = WORK_DIR
    """Folder for what the run itself writes before it is uploaded, and for staged.json."""
    training: TrainingParameters
    """The training parameters."""
    deepspeed: dict[str, Any] = Field(default_factory=lambda: preset_config("zero2"))
    """DeepSpeed's configuration."""
    guard: Guard | None = None
    """Rules by which the run ends, or is suspended, before its last step. None: it makes every step."""
    progress: ProgressTarget | None = None
    """Where to report progress. None: only to the log."""

    @model_validator(mode="after")
    def check_together(self, info: ValidationInfo) -> Self:
        """What the guard looks at is measured."""
        report(contradictions(self.guard, self.training), info)
        return self

    @classmethod
    def from_job(cls, job: RewardFLJob) -> Self:
        """Return what the pods of `job` are told."""
        spec = job.spec
        return cls(
            name=job.metadata.name,
            device="cuda" if spec.gpus_per_node else "cpu",
            storage=spec.storage,
            dataset=spec.dataset,
            output=spec.output,
            cache_max_size=spec.cache.max_size,
            training=spec.training,
            deepspeed=spec.deepspeed.resolved(),
            guard=spec.guard,
            progress=ProgressTarget(namespace=job.metadata.namespace, config_map=job.progress_name),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a configuration file (YAML or JSON, snake_case or camelCase).

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a valid configuration (pydantic's ValidationError is one).
        """
        return cls.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))

    def dump(self) -> str:
        """Return the file's text."""
        return yaml.dump(self.to_trainer(), Dumper=_Dumper, sort_keys=False)
