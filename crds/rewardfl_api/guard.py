"""The guard: rules by which a run ends, or is suspended, before its last step; and what is told when one of them was broken.

The rules are decided by the trainer (`rewardfl_trainer.guard`), since it alone sees every step. docs/guard.md has their formulas.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, ValidationInfo, model_validator

from .base import ApiModel
from .contradictions import Contradiction, report
from .errors import Reason
from .parameters import MAX_STEPS_LIMIT
from .printable import one_line
from .training import TrainingParameters

LONGEST_WINDOW = 1000
"""Steps over which a mean is taken at most: a checkpoint holds each of them."""

FACELESS_REWARD = "temporal_consistency"
"""The built-in reward that does not look for faces."""

TRIP_MESSAGE_MAX_CHARACTERS = 512

GuardAction = Literal["Stop", "Suspend"]
GuardReason = Literal[Reason.HELD_OUT_REWARD_FELL, Reason.KL_TOO_HIGH, Reason.FACES_VANISHED]
WindowSteps = Annotated[int, Field(ge=1, le=LONGEST_WINDOW)]


class HeldOutGuard(ApiModel):
    """Early stopping: the held-out reward has fallen while the training reward rises."""

    patience: Annotated[int, Field(ge=1, le=100)] = 3
    """Evaluations in a row that must be worse than the best one. Worse: of the same rows and noises, the mean of what was lost is
    greater than twice its standard error, and than minDelta."""
    min_delta: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """A fall of the held-out reward that is no greater does not count."""


class KlGuard(ApiModel):
    """The trained model has left the untrained one."""

    max: Annotated[float, Field(gt=0, le=1e12)]
    """Bound of the KL term before its weight, as status.metrics.kl shows it."""
    steps: WindowSteps = 10
    """Optimizer steps over which the mean is taken that is compared."""


class NoFaceGuard(ApiModel):
    """The generated videos show no faces any more."""

    max_fraction: Annotated[float, Field(ge=0, lt=1)]
    """Bound of the share of generated frames without a face, as status.metrics.noFaceFraction shows it."""
    steps: WindowSteps = 10
    """Optimizer steps over which the mean is taken that is compared."""


class Guard(ApiModel):
    """Ends or suspends a run that does no good any more. At least one rule."""

    action: GuardAction = "Stop"
    """Stop: the run saves a checkpoint, writes its results as at its end, and the job has Succeeded. Suspend: it saves a
    checkpoint and the operator sets runPolicy.suspend to true."""
    held_out: HeldOutGuard | None = None
    """Early stopping: the held-out reward has fallen while the training reward rises. Needs training.evalSteps and evaluation
    rows."""
    kl: KlGuard | None = None
    """The KL to the untrained model has passed a bound."""
    no_face: NoFaceGuard | None = None
    """The share of generated frames without a face has passed a bound."""

    @model_validator(mode="after")
    def check_any(self, info: ValidationInfo) -> Self:
        """A guard that watches nothing is a mistake."""
        if self.held_out is None and self.kl is None and self.no_face is None:
            message = (
                f"guard.action={self.action}: the guard watches nothing; give heldOut, kl or noFace as well, or remove guard"
            )
            report([Contradiction(("guard.action", "guard"), message)], info)
        return self


def contradictions(guard: Guard | None, training: TrainingParameters) -> Iterator[Contradiction]:
    """Yield the rules that could never be broken because nobody measures what they look at."""
    if guard is None:
        return
    if guard.held_out is not None and not (training.evaluates and training.eval_steps):
        missing = "training.evalSteps" if training.evaluates else "training.evalRows (or evalDataset) and training.evalSteps"
        yield Contradiction(
            ("guard.held_out.patience", "training.eval_steps", "training.eval_rows", "training.eval_dataset"),
            f"guard.heldOut.patience={guard.held_out.patience}: no held-out reward is measured while training; set {missing}",
        )
    videos = training.eval_rows * training.eval_noise_seeds
    if guard.held_out is not None and guard.held_out.min_delta == 0 and videos == 1:
        yield Contradiction(
            ("guard.held_out.min_delta", "training.eval_rows", "training.eval_noise_seeds"),
            "guard.heldOut.minDelta=0: one evaluation video cannot tell a fall from chance; raise training.evalRows or "
            "evalNoiseSeeds, or set minDelta",
        )
    if guard.kl is not None and training.kl_weight == 0:
        yield Contradiction(
            ("guard.kl.max", "training.kl_weight"),
            f"guard.kl.max={guard.kl.max:g}: with training.klWeight=0 no KL is computed; raise it, or remove guard.kl",
        )
    if guard.no_face is not None and all(reward.name == FACELESS_REWARD for reward in training.reward_specs):
        yield Contradiction(
            ("guard.no_face.max_fraction", "training.rewards"),
            f"guard.noFace.maxFraction={guard.no_face.max_fraction:g}: {FACELESS_REWARD} looks for no faces; add face_identity "
            "to training.rewards, or remove guard.noFace",
        )


class GuardTrip(ApiModel):
    """That a rule was broken: part of the trainer's progress document and of the checkpoint of that step."""

    reason: GuardReason
    """Which rule."""
    action: GuardAction
    """What was to happen then."""
    step: Annotated[int, Field(ge=0, le=MAX_STEPS_LIMIT)]
    """Optimizer steps that were done."""
    time: AwareDatetime
    """When it was found. By this a trip is known again."""
    message: Annotated[str, Field(max_length=TRIP_MESSAGE_MAX_CHARACTERS), AfterValidator(one_line)]
    """Which bound, and the value."""
