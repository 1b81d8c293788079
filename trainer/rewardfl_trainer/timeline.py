"""Where the time of a run goes: staging, preparing, training, evaluating, saving, and what restarts have cost.

Kept as `run.json` in `output`, one session for each start of the trainer. Measures only: whatever is wrong with the file of an
earlier start, the run goes on with a new one.
"""

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, ConfigDict, Field

from rewardfl_api.base import ApiModel
from rewardfl_api.guard import GuardTrip

from .process_age import StagingTime
from .storage import Storage, join

Phase = Literal["staging", "preparing", "training", "evaluating", "saving"]
"""staging: models and dataset are fetched; preparing: everything until the first step; training: optimizer steps; evaluating:
held-out and sample videos; saving: checkpoints and results, as far as the loop waits for them."""

PHASES: tuple[Phase, ...] = get_args(Phase)

RUN_FILE = "run.json"
SESSIONS_KEPT = 200
"""Of a run that is started again and again; the oldest are forgotten first."""

logger = logging.getLogger(__name__)


class Session(ApiModel):
    """A start of the trainer, from its process to its end, or to where it was last written down."""

    model_config = ConfigDict(extra="ignore")

    started: AwareDatetime
    """When the main rank's process began; with staging, that before it."""
    written: AwareDatetime
    """When this was last written down. Of a session that was killed, what came after it is lost."""
    first_step: Annotated[int, Field(ge=0)] = 0
    """Steps that were done when it began."""
    step: Annotated[int, Field(ge=0)] = 0
    """Steps that were done when it was written down."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Ranks."""
    device: Annotated[str, Field(max_length=256)] = "cpu"
    """cpu, or the name of the GPU that each rank has."""
    ended: bool = False
    """Whether it came to its own end: all results written, or stopped after a checkpoint."""
    seconds: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """By phase."""


class History(ApiModel):
    """The content of run.json."""

    model_config = ConfigDict(extra="ignore")

    total_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of the run in all."""
    sessions: list[Session] = Field(default_factory=list)
    """The oldest first."""
    guard: GuardTrip | None = None
    """The rule of the guard that was broken last; none where the guard was changed since."""


class Timeline:
    """Counts the seconds of this session by phase. The phases lie beside each other: one within another interrupts it.

    Args:
        processes: ranks.
        device: what each of them has.
        seconds_ago: when the session, which is preparing at first, began.
    """

    def __init__(self, processes: int = 1, device: str = "cpu", seconds_ago: float = 0.0) -> None:
        now = datetime.now(UTC)
        self.session = Session(started=now - timedelta(seconds=seconds_ago), written=now, processes=processes, device=device)
        self.earlier: list[Session] = []
        self.total_steps: int | None = None
        self._phase: Phase = "preparing"
        self._began = time.monotonic() - seconds_ago

    def staged(self, staging: StagingTime | None) -> None:
        """Count the staging before this process as the session's beginning. What lies between is preparation."""
        if staging is None:
            return
        since = time.time() - staging.began
        self.session.started = datetime.now(UTC) - timedelta(seconds=since)
        self.session.seconds["staging"] = staging.seconds
        self._began = time.monotonic() - since + staging.seconds

    def go_on(self, earlier: list[Session], first_step: int, total_steps: int) -> None:
        """Take what was before this session, and how long the run is.

        Where a run begins at step 0 although an earlier one came to its own end, that was another one: its checkpoints are gone.
        """
        another = first_step == 0 and any(session.ended for session in earlier)
        self.earlier = [] if another else earlier[-SESSIONS_KEPT:]
        self.total_steps = total_steps
        self.session.first_step = self.session.step = first_step

    def switch(self, phase: Phase) -> None:
        """End the phase that is going on and begin another."""
        self._close()
        self._phase = phase

    @contextmanager
    def part(self, phase: Phase) -> Iterator[None]:
        """Count the time inside as another phase than that outside."""
        outside = self._phase
        self.switch(phase)
        try:
            yield
        finally:
            self.switch(outside)

    def history(self, step: int, *, ended: bool = False, guard: GuardTrip | None = None) -> History:
        """Return every session up to now; `guard`: which of its rules was broken last."""
        self._close()
        self.session = self.session.model_copy(
            update={
                "step": step,
                "written": datetime.now(UTC),
                "ended": ended,
                "seconds": {name: round(seconds, 3) for name, seconds in self.session.seconds.items()},
            }
        )
        return History(total_steps=self.total_steps, sessions=[*self.earlier, self.session], guard=guard)

    def _close(self) -> None:
        now = time.monotonic()
        seconds = self.session.seconds
        seconds[self._phase] = seconds.get(self._phase, 0.0) + max(0.0, now - self._began)
        self._began = now


def earlier_sessions(storage: Storage, output: str) -> list[Session]:
    """Return the sessions that `output` knows of; none where it cannot be read. Optional work."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = storage.download_file(join(output, RUN_FILE), Path(scratch) / RUN_FILE)
            return History.model_validate_json(path.read_bytes()).sessions
    except Exception as error:  # what is only measured must never stop training
        logger.info("the time of earlier starts is not known: %s", error)
        return []
