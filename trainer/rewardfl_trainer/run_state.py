"""What a run is beside its tensors: position, counters, schedule, random generators, and the identity that it is bound to."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from rewardfl_api.base import ApiModel

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
        return self.model_dump(mode="python", by_alias=False)

    @classmethod
    def read(cls, path: Path) -> "RunState":
        """Read the file.

        Raises:
            OSError, ValueError: it cannot be read, or is not such a file.
        """
        return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
