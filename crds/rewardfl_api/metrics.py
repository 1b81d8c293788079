"""The metrics of a run, step by step, as they are stored and as they are logged. Reads text only; fetches nothing.

Whatever a run wrote may be cut off or damaged: what cannot be read is left out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_LOGGED = re.compile(r"\bstep (?P<step>\d{1,9})/\d+ (?P<values>\S+ \S+(?: \S+ \S+)*)$")
"""How the trainer's log tells a step (rewardfl_trainer.console)."""

LARGEST = 1e300


@dataclass(frozen=True)
class StepMetrics:
    """A logged step: a line of metrics.jsonl, or of the log, which has fewer values.

    Attributes:
        step: optimizer steps done. 0: what was measured before the first.
        values: all of them by the names of metrics.jsonl (docs/operations.md). What was not finite is None.
    """

    step: int
    values: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def reward(self) -> float | None:
        """Mean score of the generated videos; of several rewards, their mean by weight."""
        return self.values.get("reward")

    @property
    def held_out_reward(self) -> float | None:
        """Mean score of the evaluation rows, at the steps at which it was measured."""
        return self.values.get("held_out_reward")

    @property
    def loss(self) -> float | None:
        """Loss."""
        return self.values.get("loss")

    @property
    def kl(self) -> float | None:
        """KL term before its weight."""
        return self.values.get("kl")

    @property
    def grad_norm(self) -> float | None:
        """Gradient norm before clipping."""
        return self.values.get("grad_norm")

    @property
    def no_face_fraction(self) -> float | None:
        """Share of generated frames without a face."""
        return self.values.get("no_face_fraction")

    @property
    def learning_rate(self) -> float | None:
        """Learning rate."""
        return self.values.get("learning_rate")

    @property
    def seconds_per_step(self) -> float | None:
        """Seconds per optimizer step, averaged over the last steps."""
        return self.values.get("seconds_per_step")


def of_text(text: str) -> list[StepMetrics]:
    """Return the steps of a metrics.jsonl, in order. Of two lines of a step the newer counts."""
    by_step: dict[int, StepMetrics] = {}
    for line in text.splitlines():
        try:
            content = json.loads(line)
            step = int(content.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
        by_step[step] = StepMetrics(step, {str(name): _number(value) for name, value in content.items()})
    return [by_step[step] for step in sorted(by_step)]


def of_log(line: str) -> StepMetrics | None:
    """Return the step that a line of the trainer's log tells; None when it tells none."""
    found = _LOGGED.search(line)
    if found is None:
        return None
    words = found["values"].split()
    pairs = zip(words[::2], words[1::2], strict=True)
    try:
        return StepMetrics(int(found["step"]), {name: _number(float(text)) for name, text in pairs})
    except ValueError:
        return None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST else None  # NaN compares false
