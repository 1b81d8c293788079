"""Reads what a run has stored into typed records. A run may still be going on, or have been interrupted at any moment.

Names and prompts come from the user's dataset and are hostile; here they are only carried. Draws nothing and judges nothing.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, Field, TypeAdapter

from rewardfl_api.base import ApiModel
from rewardfl_api.guard import GuardTrip
from rewardfl_api.metrics import StepMetrics, of_text
from rewardfl_api.trainer_config import CONFIG_KEY

from ..files import METRICS_FILE, SAMPLES_FOLDER
from ..timeline import RUN_FILE, History, Session
from .stored import Stored

RESULTS_FILE = "results.json"
VIDEO_NAME = re.compile(r"(?:before|after|step-\d{1,9})/row-\d{1,9}\.mp4")
MOMENT_NAME = re.compile(r"before|after|step-(\d{1,9})")
MAX_PROMPT_CHARACTERS = 600

Group = Literal["held out", "trained"]
"""Rows that are never trained on, and rows that are."""

Content = TypeVar("Content")


class Sample(ApiModel):
    """A sample video and what it scored: an entry of samples/<moment>.json."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    row: Annotated[int, Field(ge=0)]
    """Row of the dataset's table."""
    draw: int
    """Which of the row's noises."""
    prompt: str = ""
    """The row's prompt."""
    video: str | None = None
    """Its file in the samples folder; null where it was not written."""
    score: float
    """Mean of the rewards' scores by weight."""
    rewards: dict[str, float] = Field(default_factory=dict)
    """Each reward's score."""
    frame_scores: list[float | None] = Field(default_factory=list)
    """The first reward's score of each frame."""
    no_face_fraction: float | None = None
    """Part of the frames without a face."""
    boxes: list[Annotated[list[float], Field(min_length=4, max_length=4)] | None] | None = None
    """The face of each frame in pixels."""

    @property
    def file(self) -> str | None:
        """The video's name in the run's output, where it is one that a run gives."""
        return f"{SAMPLES_FOLDER}/{self.video}" if self.video and VIDEO_NAME.fullmatch(self.video) else None


_SAMPLES: TypeAdapter[list[Sample]] = TypeAdapter(list[Sample])


@dataclass(frozen=True)
class Pair:
    """A row before and after training (or as far as it is), from the same noises."""

    group: Group
    row: int
    before: list[Sample]
    """One a noise; the same noises as `after`."""
    after: list[Sample]

    @property
    def prompt(self) -> str:
        """The row's prompt."""
        return (self.before or self.after)[0].prompt[:MAX_PROMPT_CHARACTERS]

    @property
    def change(self) -> float | None:
        """How much the mean score has risen; None as long as there is no second one."""
        if not self.before or not self.after:
            return None
        return _mean_score(self.after) - _mean_score(self.before)

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """The mean scores before and after."""
        return tuple(_mean_score(side) if side else None for side in (self.before, self.after))  # type: ignore[return-value]


@dataclass(frozen=True)
class Evaluation:
    """The held-out videos after so many steps."""

    step: int
    samples: list[Sample]

    def by_noise(self) -> dict[int, float]:
        """Return the mean score over the rows, for each noise."""
        draws: dict[int, list[float]] = {}
        for sample in self.samples:
            draws.setdefault(sample.draw, []).append(sample.score)
        return {draw: sum(scores) / len(scores) for draw, scores in sorted(draws.items())}


@dataclass(frozen=True)
class RunData:
    """What is known of a run."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """The trainer's configuration as the user wrote it, by the trainer's names; empty where it is not known."""
    lines: list[StepMetrics] = field(default_factory=list)
    """The metrics, by step."""
    before: list[Sample] = field(default_factory=list)
    """Sample videos of trained rows before training."""
    after: list[Sample] = field(default_factory=list)
    """The same after training."""
    evaluations: list[Evaluation] = field(default_factory=list)
    """By step."""
    sessions: list[Session] = field(default_factory=list)
    """Every start of the trainer."""
    finished: bool = False
    """Whether all results were written."""
    total_steps: int | None = None
    """Steps in all, where they are known."""
    guard: GuardTrip | None = None
    """The rule of its guard that was broken last."""
    unreadable: list[str] = field(default_factory=list)
    """What could not be read, for people."""

    @property
    def training(self) -> Mapping[str, Any]:
        """The training parameters."""
        given = self.config.get("training")
        return given if isinstance(given, dict) else {}

    @property
    def step(self) -> int:
        """Steps that are known to be done."""
        return max([0, *(line.step for line in self.lines), *(session.step for session in self.sessions)])

    def pairs(self) -> list[Pair]:
        """Return every row of which there are samples: the held-out ones first."""
        found: list[Pair] = []
        if self.evaluations:
            first, last = self.evaluations[0], self.evaluations[-1]
            found += _pairs("held out", first.samples, last.samples if last.step > first.step else [])
        return found + _pairs("trained", self.before, self.after)


def load(stored: Stored, name: str = "", config: Mapping[str, Any] | None = None, *, finished: bool = False) -> RunData:
    """Read a run. What is missing is left empty, what is damaged is named in `unreadable`.

    Args:
        stored: where its files are.
        name: what to call it where its configuration does not say.
        config: its configuration, where it is known already.
        finished: whether it is known that all its results are there.

    Raises:
        RewardFLError: the storage cannot be read.
    """
    unreadable: list[str] = []
    reader = _Reader(stored, unreadable)
    found = config or reader.read(CONFIG_KEY, _mapping) or {}
    lines = reader.read(METRICS_FILE, _lines) or []
    moments = {match[0]: reader.read(each, _samples) or [] for each, match in _moments(stored)}
    measured = {line.step for line in lines if any(key.startswith("held_out_") for key in line.values)}
    steps = {int(name.removeprefix("step-")): samples for name, samples in moments.items() if name.startswith("step-")}
    evaluations = [Evaluation(step, steps[step]) for step in sorted(steps) if steps[step] and step in measured]
    history = reader.read(RUN_FILE, lambda path: History.model_validate_json(path.read_bytes())) or History()
    done = reader.read(RESULTS_FILE, lambda path: int(_mapping(path)["step"]))
    finished = finished or _is_last(done, history, lines)
    return RunData(
        name=str(found.get("name") or name or "run"),
        config=found,
        lines=lines,
        before=moments.get("before", []),
        after=moments.get("after", []) if finished or done is None else [],  # of a run that goes on after its end, older
        evaluations=evaluations,
        sessions=history.sessions,
        finished=finished,
        total_steps=history.total_steps,
        guard=history.guard,
        unreadable=unreadable,
    )


def _is_last(done: int | None, history: History, lines: list[StepMetrics]) -> bool:
    """Whether results written after `done` steps are those of the run's end: of its last step, or of where its guard ended it."""
    if done is None or any(line.step > done for line in lines):
        return False
    return done >= (history.total_steps or 0) or (history.guard is not None and history.guard.step == done)


@dataclass(frozen=True)
class _Reader:
    """Reads files of a run; keeps what could not be read."""

    stored: Stored
    unreadable: list[str]

    def read(self, name: str, parse: Callable[[Path], Content]) -> Content | None:
        """Return a file's content; None where it is not there or is damaged."""
        path = self.stored.path(name)
        if path is None:
            return None
        try:
            return parse(path)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            self.unreadable.append(f"{name} could not be read: {first_line[:200]}")
            return None


def _moments(stored: Stored) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the name of each list of sample videos, and its moment."""
    for name in stored.sample_names():
        match = MOMENT_NAME.fullmatch(name.removeprefix(f"{SAMPLES_FOLDER}/").removesuffix(".json"))
        if match is not None:
            yield name, match


def _mapping(path: Path) -> Mapping[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("not a mapping")
    return content


def _lines(path: Path) -> list[StepMetrics]:
    return of_text(path.read_text(encoding="utf-8", errors="replace"))


def _samples(path: Path) -> list[Sample]:
    return sorted(_SAMPLES.validate_json(path.read_bytes()), key=lambda sample: (sample.row, sample.draw))


def _pairs(group: Group, before: list[Sample], after: list[Sample]) -> list[Pair]:
    """Return the rows of two moments, with the noises that both have where both have the row."""
    found = []
    for row in sorted({sample.row for sample in [*before, *after]}):
        sides = [[sample for sample in side if sample.row == row] for side in (before, after)]
        if all(sides):
            draws = {sample.draw for sample in sides[0]} & {sample.draw for sample in sides[1]}
            sides = [[sample for sample in side if sample.draw in draws] for side in sides]
        if any(sides):
            found.append(Pair(group, row, *sides))
    return found


def _mean_score(samples: list[Sample]) -> float:
    return sum(sample.score for sample in samples) / len(samples)
