"""Adds up where the time of a run went, over all its starts, and what of it was training. Pure."""

from dataclasses import dataclass, field
from itertools import pairwise

from ..timeline import PHASES, Session
from .data import RunData

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Times:
    """Seconds of a run by what they were for."""

    seconds: dict[str, float] = field(default_factory=dict)
    """By phase."""
    lost: float = 0.0
    """From where each session was last written down to the beginning of the next: steps made twice, and waiting."""
    restarts: int = 0
    """Times that the run was started again."""
    gpu_hours: float | None = None
    """Hours of GPUs held, also while they waited; None on CPUs."""
    device: str = ""
    """The newest session's."""

    @property
    def total(self) -> float:
        """Seconds from the beginning to where the run was last written down."""
        return sum(self.seconds.values()) + self.lost

    @property
    def goodput(self) -> float | None:
        """Part of the time that was training; None where nothing is known."""
        return self.seconds.get("training", 0.0) / self.total if self.total > 0 else None


def times_of(run: RunData) -> Times:
    """Return the times of a run."""
    sessions = sorted(run.sessions, key=lambda session: session.started)
    if not sessions:
        return Times()
    seconds = {phase: sum(session.seconds.get(phase, 0.0) for session in sessions) for phase in PHASES}
    gaps = [max(0.0, (later.started - earlier.written).total_seconds()) for earlier, later in pairwise(sessions)]
    newest = sessions[-1]
    known = [session for session in sessions if session.device != "cpu"]
    hours = sum(_held(session) for session in known) / SECONDS_PER_HOUR
    return Times(
        {phase: value for phase, value in seconds.items() if value > 0},
        sum(gaps),
        len(gaps),
        hours if known else None,
        f"{newest.processes} x {newest.device}",
    )


def _held(session: Session) -> float:
    """Return the seconds of GPUs that a session is known to have held."""
    return sum(session.seconds.values()) * session.processes
