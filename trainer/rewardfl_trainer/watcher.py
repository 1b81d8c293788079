"""Carries out the guard while a run trains: remembers, lets the ranks agree, and knows which evaluation was the best.

What is decided stands in `guard.py`, what becomes of it in `train.py`. The main rank decides for all: its numbers and its vote
count.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.guard import TRIP_MESSAGE_MAX_CHARACTERS, Guard, GuardTrip
from rewardfl_api.progress import LARGEST_NUMBER, BestCheckpoint

from . import guard
from .collective import on_main
from .environment import Process
from .evaluation import Evaluation
from .guard import Evaluated, Memory, Verdict
from .identity import Identity
from .metrics import HELD_OUT
from .run_state import RunState
from .uploads import checkpoint_uri

SCORED_BY = frozenset({"eval_rows", "eval_dataset", "eval_noise_seeds", "rewards", "missing_face_penalty"})
"""Parameters that may change before a run goes on, and after which a held-out reward cannot be compared with an earlier one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """What follows from an evaluation; the same on every rank."""

    is_best: bool = False
    """Whether it is the best that was made of trained weights."""
    tripped: bool = False
    """Whether it breaks a rule."""


class Watcher:
    """A run's guard.

    Args:
        rules: None: nothing is guarded, and the best evaluation alone is kept in mind.
        memory: of the run so far.
        best: the best checkpoint so far.
        process: this rank.
        output: folder of the results.
        total_steps: of the run; after the last one there is nothing left to guard.
        has_ended: whether the guard has stopped this run at the step that it would go on from.
    """

    def __init__(
        self,
        rules: Guard | None,
        memory: Memory,
        best: BestCheckpoint | None,
        process: Process,
        output: str,
        total_steps: int,
        *,
        has_ended: bool = False,
    ) -> None:
        self.rules, self.memory, self.best, self.has_ended = rules, memory, best, has_ended
        self._process, self._output, self._total_steps = process, output, total_steps

    @classmethod
    def of(cls, rules: Guard | None, state: RunState | None, identity: Identity, process: Process, total_steps: int) -> "Watcher":
        """Return the guard of a run that goes on from `state`, if that is not None.

        A run that was stopped goes no further, however often it is started, until its parameters or its guard are changed.
        """
        if state is None:
            return cls(rules, Memory(rules=rules), None, process, identity.output, total_steps)
        memory, best = state.guard, state.best
        changed = identity.changed(state.identity)
        others = set() if state.identity.held_out in (None, identity.held_out) else {"the evaluation rows"}
        if scored := (changed & SCORED_BY) | others:
            logger.warning("%s changed: the held-out reward is compared anew", ", ".join(sorted(scored)))
            memory, best = Memory(rules=memory.rules, trip=memory.trip), None
        trip = memory.trip
        if memory.rules != rules or (trip is not None and trip.action == "Stop" and changed):
            memory = guard.rearmed(memory, rules)
        has_ended = memory.trip is not None and memory.trip.action == "Stop" and memory.trip.step == state.position.step
        return cls(rules, memory, best, process, identity.output, total_steps, has_ended=has_ended)

    @property
    def trip(self) -> GuardTrip | None:
        """The rule that was broken last."""
        return self.memory.trip

    @property
    def stops(self) -> bool:
        """Whether a broken rule ends the run for good."""
        return self.rules is not None and self.rules.action == "Stop"

    def after_step(self, step: int, values: Mapping[str, float]) -> bool:
        """Remember a step's metrics. Return this rank's vote: whether a rule is broken. Only the main rank says so."""
        self.memory = guard.after_step(self.memory, values)
        return self._process.is_main and self._tripped(step, guard.verdict_on_steps(self.memory))

    def after_evaluation(self, step: int, evaluation: Evaluation) -> Judged:
        """Judge what `evaluation` has just measured. A collective call."""
        reward = evaluation.latest[f"{HELD_OUT}reward"]
        return on_main(self._process, lambda: self._judge(step, reward, evaluation.parts))

    def _judge(self, step: int, reward: float, parts: list[float]) -> Judged:
        """Remember an evaluation, on the main rank."""
        if not abs(reward) <= LARGEST_NUMBER:  # nor is it then NaN
            return Judged()
        now = Evaluated(step=step, reward=reward, parts=parts)
        self.memory = guard.after_evaluation(self.memory, now)
        is_best = step > 0 and (self.best is None or reward > self.best.score)
        if is_best:
            self.best = BestCheckpoint(step=step, score=reward, uri=checkpoint_uri(self._output, step))
        already = self.trip is not None and self.trip.step == step
        broken = not already and self._tripped(step, guard.verdict_on_evaluations(self.memory, now))
        return Judged(is_best, broken)

    def _tripped(self, step: int, verdict: Verdict | None) -> bool:
        """Remember that a rule was broken, if one was, and return whether."""
        if verdict is None or self.rules is None or step >= self._total_steps:
            return False
        message = verdict.message[:TRIP_MESSAGE_MAX_CHARACTERS]
        time = datetime.now(UTC).replace(microsecond=0)
        trip = GuardTrip(reason=verdict.reason, action=self.rules.action, step=step, time=time, message=message)
        self.memory = guard.tripped(self.memory, trip)
        logger.warning("the guard after step %d: %s: %s", step, verdict.reason.value, message)
        return True


def check_tellable(rules: Guard | None, videos: int) -> None:
    """Check that chance alone does not stop the run: how many evaluation videos there are is known only with the data.

    Raises:
        RewardFLError: a single one, and every fall counts (exit code 78).
    """
    if rules is None or rules.held_out is None or rules.held_out.min_delta > 0 or videos != 1:
        return
    raise RewardFLError(
        Reason.BAD_CONFIGURATION,
        "guard.heldOut.minDelta=0: training.evalDataset has one usable row, and one video cannot tell a fall from chance.",
        "Add rows, raise training.evalNoiseSeeds, or set minDelta.",
        ExitCode.BAD_CONFIGURATION,
    )
