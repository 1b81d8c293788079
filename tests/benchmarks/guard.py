"""How often chance alone breaks the rule `heldOut`, and how soon a true fall does: the table of docs/guard.md.

`python -m tests.benchmarks.guard` prints it. Rows scatter independently around a level that stays, or falls by the same at each
evaluation; the training reward always rises, which is the worst case. The trainer's own rule decides, no copy of it.
"""

import random
import statistics
from dataclasses import dataclass

from rewardfl_api.guard import Guard, HeldOutGuard
from rewardfl_trainer.guard import Evaluated, Memory, after_evaluation, after_step, verdict_on_evaluations

ROWS = (2, 4, 8, 16)
PATIENCE = (2, 3, 5)
RUNS = 2000
EVALUATIONS = 12
"""After the one before training."""
SPREAD = 0.02
"""Standard deviation by which a row's score differs from its level."""
LEVEL = 0.5
FALL = 0.01
"""What a run that falls loses at each evaluation."""


@dataclass(frozen=True)
class Chance:
    """What came of many runs."""

    stopped: float
    """Share of the runs that stayed where they were and were stopped."""
    found: float
    """Share of the runs that fell and were stopped."""
    after: float
    """At which evaluation those were stopped: the median."""

    def __str__(self) -> str:
        share = f"{self.stopped:.0%}" if self.stopped >= 0.01 else f"{self.stopped:.1%}"
        return f"{share.replace('%', ' %')}, {self.after:.0f}th".replace(" 3th", " 3rd")


def stopped_at(rows: int, patience: int, fall: float, random_numbers: random.Random) -> int | None:
    """Return the evaluation at which a run is stopped, the one before training being 0."""
    memory = Memory(rules=Guard(held_out=HeldOutGuard(patience=patience)))
    for number in range(EVALUATIONS + 1):
        scores = [LEVEL - fall * number + random_numbers.gauss(0.0, SPREAD) for _ in range(rows)]
        if number:
            memory = after_step(memory, {"reward": float(number)})
        now = Evaluated(step=number, reward=statistics.fmean(scores), parts=scores)
        memory = after_evaluation(memory, now)
        if verdict_on_evaluations(memory, now) is not None:
            return number
    return None


def chance(rows: int, patience: int, runs: int = RUNS) -> Chance:
    """Return what came of `runs` runs that stay, and as many that fall."""
    numbers = random.Random(rows * 100 + patience)
    stay = [stopped_at(rows, patience, 0.0, numbers) for _ in range(runs)]
    fell = [at for at in (stopped_at(rows, patience, FALL, numbers) for _ in range(runs)) if at is not None]
    return Chance(sum(at is not None for at in stay) / runs, len(fell) / runs, statistics.median(fell))


def render() -> str:
    """Return the table as Markdown."""
    lines = [
        "| rows | " + " | ".join(f"`patience: {patience}`" for patience in PATIENCE) + " |",
        "|---" * (len(PATIENCE) + 1) + "|",
    ]
    lines += [f"| {rows} | " + " | ".join(str(chance(rows, patience)) for patience in PATIENCE) + " |" for rows in ROWS]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
