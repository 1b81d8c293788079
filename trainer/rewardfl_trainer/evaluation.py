"""The held-out reward: that of videos of rows, and from noises, which are never trained with.

The evaluation rows stand behind the trained ones in the same dataset, so that everything that is kept for a row is kept for them
too. Must not change anything that is trained, nor depend on how often it is asked.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from .data import FaceFinder, Preflight, Row, load_rows, preflight
from .metrics import HELD_OUT
from .samples import Sampler, SampleScore, mean_score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Every usable row of a run: `num_trained` rows that are trained on, and behind them the evaluation rows."""

    rows: list[Row]
    sizes: list[tuple[int, int]]
    """(height, width) at which each row is trained."""
    num_trained: int

    @property
    def trained_rows(self) -> list[Row]:
        """The rows that are trained on."""
        return self.rows[: self.num_trained]

    @property
    def trained_sizes(self) -> list[tuple[int, int]]:
        """Their sizes."""
        return self.sizes[: self.num_trained]

    @property
    def evaluation_rows(self) -> list[Row]:
        """The rows that are evaluated on."""
        return self.rows[self.num_trained :]

    @property
    def evaluation_positions(self) -> list[int]:
        """Where the evaluation rows are in `rows`."""
        return list(range(self.num_trained, len(self.rows)))


def split_rows(config: TrainerConfig, face_finder: FaceFinder | None) -> Split:
    """Read and check the dataset, and the evaluation dataset where there is one.

    Raises:
        RewardFLError: rows are bad (exit code 65), or `eval_rows` leaves none to train on (78).
    """
    parameters = config.training
    usable = _checked(Path(config.dataset), parameters, face_finder)
    if parameters.eval_dataset is None:
        num_trained = len(usable.rows) - parameters.eval_rows
        if num_trained < 1:
            raise RewardFLError(
                Reason.BAD_CONFIGURATION,
                f"training.eval_rows={parameters.eval_rows}: the dataset has {len(usable.rows)} usable rows, and none would be "
                "left to train on.",
                "Lower it, add rows to the dataset, or use training.eval_dataset.",
                ExitCode.BAD_CONFIGURATION,
            )
        split = Split(usable.rows, usable.sizes, num_trained)
    else:
        held_out = _checked_evaluation(Path(parameters.eval_dataset), parameters, face_finder)
        split = Split(usable.rows + held_out.rows, usable.sizes + held_out.sizes, len(usable.rows))
    _warn_of_shared_videos(split)
    logger.info("%d rows to train on, %d to evaluate on", split.num_trained, len(split.evaluation_positions))
    return split


def _checked(folder: Path, parameters: TrainingParameters, face_finder: FaceFinder | None) -> Preflight:
    """Read a dataset's table and look at every row."""
    result = preflight(load_rows(folder), parameters, face_finder)
    for row in result.skipped:
        logger.warning("%s is left out: no face in its first frame", row)
    return result


def _checked_evaluation(folder: Path, parameters: TrainingParameters, face_finder: FaceFinder | None) -> Preflight:
    """The same for the evaluation dataset, which errors name."""
    try:
        return _checked(folder, parameters, face_finder)
    except RewardFLError as error:
        raise RewardFLError(error.reason, f"training.eval_dataset: {error.message}", error.hint, error.exit_code) from error


def _warn_of_shared_videos(split: Split) -> None:
    """Say which evaluation rows show a video that is trained on: their reward is not held out."""
    trained = {row.video.resolve() for row in split.trained_rows}
    for row in split.rows[split.num_trained :]:
        if row.video.resolve() in trained:
            logger.warning("evaluation %s shows a video that is trained on as well", row)


@dataclass
class Evaluation:
    """Measures the held-out reward. Without evaluation rows it does nothing.

    Attributes:
        positions: the evaluation rows in the dataset.
        noises: which noises each of them is generated from.
        every: optimizer steps between two measurements; None: only before and after training.
        num_videos: rows whose videos are written.
        latest: what was measured last.
        parts: what the held-out reward was the mean of when it was measured last, by this process.
    """

    sampler: Sampler
    positions: Sequence[int]
    noises: Sequence[int]
    every: int | None
    total_steps: int
    num_videos: int
    latest: dict[str, float] = field(default_factory=dict)
    parts: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, parameters: TrainingParameters, sampler: Sampler, split: Split, total_steps: int, latest: Mapping[str, float]
    ) -> "Evaluation":
        """Return the evaluation that the parameters describe; `latest` is what was measured before the run was resumed."""
        noises, videos = range(parameters.eval_noise_seeds), parameters.num_sample_videos
        positions = split.evaluation_positions
        return cls(sampler, positions, noises, parameters.eval_steps, total_steps, videos, dict(latest) if positions else {})

    def is_due(self, step: int) -> bool:
        """Whether something is measured after `step` optimizer steps."""
        at_an_end = step in (0, self.total_steps)
        return bool(self.positions) and (at_an_end or (self.every is not None and step % self.every == 0))

    def measure(self, step: int, *, last: bool = False) -> dict[str, float]:
        """Return the held-out numbers after `step` optimizer steps, by the names they are logged under; none when not due.

        After the `last` step of a run it is due. A collective call. Videos and scores go to `samples/step-<step>`.
        """
        if not self.is_due(step) and not (last and self.positions):
            return {}
        scores = self.sampler.generate(self.positions, f"step-{step}", self.noises, self.num_videos)
        self.latest, self.parts = held_out_values(scores), parts_of(scores)
        return self.latest


def parts_of(scores: Sequence[SampleScore]) -> list[float]:
    """Return what the held-out reward is the mean of: each row's score; with one row, that of each noise.

    The noises of a row have the row in common, so they are no independent measurements where there are several rows.
    """
    rows: dict[int, list[float]] = {}
    for score in scores:
        rows.setdefault(score.row, []).append(score.score)
    return [sum(row) / len(row) for row in rows.values()] if len(rows) > 1 else [score.score for score in scores]


def held_out_values(scores: Sequence[SampleScore]) -> dict[str, float]:
    """Return the means over evaluation videos. A frame without a face counts with `missing_face_penalty`, as in training."""
    values = {f"{HELD_OUT}reward": mean_score(scores)}
    names = scores[0].rewards
    if len(names) > 1:
        values |= {f"{HELD_OUT}reward_{name}": sum(score.rewards[name] for score in scores) / len(scores) for name in names}
    fractions = [score.no_face_fraction for score in scores if score.no_face_fraction is not None]
    if fractions:
        values[f"{HELD_OUT}no_face_fraction"] = sum(fractions) / len(fractions)
    return values
