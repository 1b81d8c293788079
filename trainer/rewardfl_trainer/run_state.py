"""What a run is beside its tensors: position, counters, schedule, random generators, and the identity that it is bound to."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rewardfl_api.base import ApiModel
from rewardfl_api.progress import BestCheckpoint

from .guard import Memory
from .identity import Identity
from .order import Position

STATE_FILE = "state.json"


class RunState(ApiModel):
    """The content of state.json."""

    position: Position
    """How far the run is."""
    bad_steps: Annotated[int, Field(ge=0)]
    """Steps in a row that were skipped because something was not finite."""
    held_out: dict[str, float] = Field(default_factory=dict)
    """The held-out numbers as they were last measured."""
    guard: Memory = Field(default_factory=Memory)
    """What the guard remembers."""
    best: BestCheckpoint | None = None
    """The checkpoint with the best held-out reward so far, this one included."""
    schedule: dict[str, Any]
    """State of the learning-rate schedule."""
    random: list[dict[str, Any]]
    """The generators of every rank."""
    identity: Identity
    """The run that it belongs to."""
    made_by: dict[str, Any]
    """Versions and layout that wrote it; for people."""

    def dump(self) -> dict[str, Any]:
        """Return the file's content. Floats keep their bits; a schedule's infinity is JSON's by Python's convention."""
        plain = {"guard": self.guard.to_trainer(), "best": None if self.best is None else self.best.to_trainer()}
        return self.model_dump(mode="python", by_alias=False, exclude=set(plain)) | plain

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """Read the file.

        Raises:
            OSError, ValueError: it cannot be read, or is not such a file.
        """
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
