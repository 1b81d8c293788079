"""A RewardFLJob as it is found in a cluster, for people and programs that look at it.

Reading is lenient where the operator is strict: a status that a newer operator wrote, or that is damaged, is shown as far as
it can be understood.
"""

import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

from pydantic import ValidationError

from ..base import ApiModel
from ..errors import Reason
from ..job import ObjectMeta, RewardFLJob
from ..printable import printable
from ..reasons import EXPLANATIONS, Explanation
from ..spec import RewardFLJobSpec
from ..status import FINISHED_PHASES, Condition, RewardFLJobStatus

Raw = dict[str, Any]
Model = TypeVar("Model", bound=ApiModel)

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True, repr=False)
class Job:
    """A job that was read. `raw` is what the API server answered."""

    raw: Raw

    def __repr__(self) -> str:
        step = f", step {self.status.progress}" if self.status.progress else ""
        return f"<RewardFLJob {self.namespace}/{self.name}: {self.phase or 'new'}{step}>"

    @cached_property
    def metadata(self) -> ObjectMeta:
        """Its metadata."""
        return ObjectMeta.model_validate(self.raw["metadata"])

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.metadata.namespace

    @cached_property
    def spec(self) -> RewardFLJobSpec | None:
        """Its spec; None when this version cannot read it."""
        try:
            return RewardFLJob.parse(self.raw).spec
        except ValidationError:
            return None

    @cached_property
    def status(self) -> RewardFLJobStatus:
        """Its status; empty while the operator has not looked at it."""
        return lenient(RewardFLJobStatus, self.raw.get("status") or {})

    @property
    def phase(self) -> str:
        """Its phase, as the cluster says it; empty while it has none."""
        return str((self.raw.get("status") or {}).get("phase") or "")

    @property
    def is_refused(self) -> bool:
        """Whether the operator cannot carry it out as it is written. It is Failed then, and begins once it is edited."""
        accepted = self.condition("Accepted")
        return accepted is not None and accepted.status == "False"

    @property
    def has_ended(self) -> bool:
        """Whether it has succeeded or failed. Of a refused job that was edited since, the operator has not said so yet."""
        observed = (self.status.observed_generation or 0) >= self.metadata.generation
        return self.phase in FINISHED_PHASES and (observed or not self.is_refused)

    def condition(self, kind: str) -> Condition | None:
        """The condition of that type."""
        return next((item for item in self.status.conditions if item.type == kind), None)

    @property
    def leading(self) -> Condition | None:
        """The condition that says where the job stands: how it ended, why it was refused, or whether it runs."""
        if self.is_refused:
            return self.condition("Accepted")
        held = [item for kind in ("Failed", "Succeeded", "Suspended") if (item := self.condition(kind)) and item.status == "True"]
        return held[0] if held else self.condition("Running")

    @property
    def reason(self) -> str:
        """Where it stands in one word."""
        return self.leading.reason if self.leading is not None else ""

    @property
    def message(self) -> str:
        """Where it stands in a sentence, without anything that a terminal obeys: pods have a say in it."""
        return printable(self.leading.message) if self.leading is not None else ""

    @property
    def queue(self) -> str:
        """Its Kueue queue."""
        return self.metadata.labels.get(QUEUE_LABEL, "")

    @property
    def is_suspended(self) -> bool:
        """Whether its spec asks it to stop."""
        return bool(((self.raw.get("spec") or {}).get("runPolicy") or {}).get("suspend"))

    @property
    def nodes(self) -> int:
        """Its pods."""
        return int((self.raw.get("spec") or {}).get("nodes") or 1)

    @property
    def age_seconds(self) -> float:
        """Seconds since it was created."""
        created = self.metadata.creation_timestamp
        return max((datetime.now(UTC) - created).total_seconds(), 0.0) if created is not None else 0.0


def explanation(reason: str) -> Explanation | None:
    """What a condition's reason means; None for one that this version does not know."""
    return EXPLANATIONS.get(Reason(reason)) if reason in list(Reason) else None


def lenient(model: type[Model], raw: Raw) -> Model:
    """Read `raw` as far as it can be understood: unknown fields and those that cannot be read are left out.

    Only for models without required fields.
    """
    remaining: Any = copy.deepcopy(raw) if isinstance(raw, dict) else {}
    while True:
        try:
            return model.model_validate(remaining, extra="ignore")
        except ValidationError as error:
            _drop(remaining, list(error.errors(include_url=False)[0]["loc"]))


def _drop(root: Any, path: list[str | int]) -> None:
    """Delete what stands at `path`; where that is what is missing, delete what lacks it."""
    holder = root
    for place, step in enumerate(path):
        inner = holder.get(step) if isinstance(holder, dict) else holder[step] if isinstance(step, int) else None
        following = path[place + 1] if place + 1 < len(path) else None
        if following is None or not _has(inner, following):
            del holder[step]
            return
        holder = inner


def _has(value: Any, step: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(step, int) and step < len(value)
    return isinstance(value, dict) and step in value
