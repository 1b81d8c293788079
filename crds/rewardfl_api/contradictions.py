"""Fields that contradict each other. A model's check says all that it finds, not only the first.

Usually that is one ValueError; `Collector`, given as the context of a validation, takes what is found instead, so that the
checks of the models around it are made as well. `validation.py` uses that to list everything at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import ValidationInfo


@dataclass(frozen=True)
class Contradiction:
    """What is wrong with several fields together.

    Attributes:
        fields: their paths below the spec, in snake_case; the first is the one to change.
        message: names field, value and remedy.
    """

    fields: tuple[str, ...]
    message: str


@dataclass
class Collector:
    """Takes contradictions instead of an error."""

    found: list[Contradiction] = field(default_factory=list)


def report(found: Iterable[Contradiction], info: ValidationInfo) -> None:
    """Hand over what a check has found.

    Raises:
        ValueError: something was found, and nobody collects it.
    """
    found = list(found)
    if isinstance(info.context, Collector):
        info.context.found += found
    elif found:
        raise ValueError("; ".join(item.message for item in found))
