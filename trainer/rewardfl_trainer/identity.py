"""What a checkpoint belongs to: the run that may go on from it, and what may be changed in between.

Every training parameter binds a checkpoint to its value, unless it is named here as free. So a parameter that is added later
binds until somebody has thought about it.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rewardfl_api.base import ApiModel
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from .data import Row

FREE = frozenset(
    {
        "max_steps", "dataset_repeat", "max_bad_steps",
        "logging_steps", "save_steps", "save_total_limit", "num_sample_videos",
        "eval_rows", "eval_dataset", "eval_steps", "eval_noise_seeds", "export_formats",
        "train_batch_size", "gradient_accumulation_steps",
        "use_gradient_checkpointing", "use_gradient_checkpointing_offload", "gradient_checkpointing_blocks",
        "gradient_checkpointing_attention",
        "cache_conditions", "cache_references", "cache_prefix",
    }
)  # fmt: skip
"""Parameters that change how long a run is, what it reports, or how it uses memory and ranks: never what has been computed.
Rows that are held out are missing from the dataset, which is compared by itself."""

TUNABLE = frozenset(
    {
        "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon",
        "max_grad_norm", "rewards", "reward_baseline", "reward_scale", "reward_weight", "kl_weight", "missing_face_penalty",
    }
)  # fmt: skip
"""Parameters that people change on purpose, for example after a run has diverged: allowed, with a warning."""

MAX_VALUE_CHARACTERS = 120

logger = logging.getLogger(__name__)


class Rows(ApiModel):
    """The rows that a run is trained on, or evaluated on."""

    rows: Annotated[int, Field(ge=0)]
    """How many."""
    sha256: str
    """Of index, file name, size and prompt of each."""

    @classmethod
    def of(cls, rows: Sequence[Row], folder: Path) -> "Rows":
        """Return the identity of the dataset's rows."""
        digest = hashlib.sha256()
        for row in rows:
            line = [row.index, row.video.relative_to(folder).as_posix(), row.video.stat().st_size, row.prompt]
            digest.update(json.dumps(line).encode() + b"\n")
        return cls(rows=len(rows), sha256=digest.hexdigest())

    def __str__(self) -> str:
        """For people."""
        return f"{self.rows} rows (sha256 {self.sha256[:8]})"


class Identity(ApiModel):
    """A run, as far as its checkpoints are concerned."""

    output: str
    """Where its results go. A checkpoint on the local disk that goes elsewhere is another run's."""
    training: dict[str, Any]
    """The training parameters, as the user wrote them."""
    dataset: Rows
    """What it is trained on."""
    held_out: Rows | None = None
    """What it is evaluated on. May change; scores cannot be compared then."""

    @classmethod
    def of(cls, config: TrainerConfig, rows: Sequence[Row], folder: Path, held_out: Rows | None = None) -> "Identity":
        """Return the identity of a run.

        Args:
            config: as the user wrote it; models that were staged have other paths in every pod.
            rows: those that are trained on.
            folder: the dataset's, on this machine.
            held_out: the rows that are evaluated on.
        """
        training = config.training.model_dump(mode="json", by_alias=False)
        return cls(output=config.output, training=training, dataset=Rows.of(rows, folder), held_out=held_out)

    def check(self, saved: "Identity", uri: str) -> None:
        """Check that this run may go on from a checkpoint of `saved`.

        Raises:
            RewardFLError: it may not (exit code 78); names every field that differs and both values.
        """
        changed = self.changed(saved)
        for name in sorted(changed & TUNABLE):
            now, before = self.training[name], _saved(saved, name)
            logger.warning("%s was made with training.%s=%s; it goes on with %s", uri, name, before, now)
        problems = [
            f"training.{name}={_short(self.training[name])}: the checkpoint was made with {_short(_saved(saved, name))}"
            for name in sorted(changed - TUNABLE - FREE)
        ]
        if self.dataset != saved.dataset:
            problems.append(f"dataset: has {self.dataset}, the checkpoint was made with {saved.dataset}")
        if problems:
            raise RewardFLError(
                Reason.BAD_CONFIGURATION,
                f"{uri} cannot be resumed from: {'; '.join(problems)}.",
                "Set the values back to go on, or train anew with another output (or without its checkpoints/ folder).",
                ExitCode.BAD_CONFIGURATION,
            )

    def changed(self, saved: "Identity") -> set[str]:
        """Return the names of the parameters that differ from those of a checkpoint."""
        return {name for name, value in self.training.items() if value != _saved(saved, name)}


def _saved(saved: Identity, name: str) -> Any:
    """Return a parameter of the checkpoint; one that did not exist then has its default."""
    if name in saved.training:
        return saved.training[name]
    return TrainingParameters.model_fields[name].get_default(call_default_factory=True)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_CHARACTERS else text[:MAX_VALUE_CHARACTERS] + "..."
