"""The tables of docs/moving-from-roll.md, from the converter's own."""

from collections.abc import Callable, Mapping

from pydantic.alias_generators import to_camel

from .roll_keys import BECOMES, ROLL_DEFAULTS, ROLL_PARAMETERS, WITHOUT_MEANING
from .training import TrainingParameters


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    """Return a Markdown table of keys in code."""
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| `{key}` | {text} |" for key, text in rows.items())]
    return "\n".join(lines) + "\n"


def same() -> str:
    """Return ROLL's keys that keep their names but for the spelling."""
    return _table(("ROLL", "`spec.training`"), {name: text for name, text in _parameters().items() if name in ROLL_PARAMETERS})


def added() -> str:
    """Return the training parameters that ROLL has no key for."""
    rows = {name: text for name, text in _parameters().items() if name not in {*ROLL_PARAMETERS, *WITHOUT_MEANING}}
    return _table(("accepted as", "`spec.training`"), rows)


def _parameters() -> dict[str, str]:
    return {name: f"`{field.alias or to_camel(name)}`" for name, field in TrainingParameters.model_fields.items()}


def defaults() -> str:
    """Return ROLL's defaults that are written out, beside this trainer's."""
    fields = TrainingParameters.model_fields
    rows = {name: f"{value} | {fields[name].default}" for name, value in ROLL_DEFAULTS.items()}
    lines = ["| ROLL | its default | here |", "|---|---|---|", *(f"| `{name}` | {values} |" for name, values in rows.items())]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "roll-same": same,
    "roll-added": added,
    "roll-used": lambda: _table(("ROLL", "here"), BECOMES),
    "roll-defaults": defaults,
    "roll-without-meaning": lambda: _table(("ROLL", "what to do"), WITHOUT_MEANING),
}
