"""Checks a resource against the CRD's structural schema, as the API server does, but names every field, value and remedy.

Pure. Knows nothing of RewardFLJobs beyond the schema that it is given; rules over several fields are `validation.py`'s.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pydantic.alias_generators import to_camel

from .uris import S3_PATTERN, SOURCE_PATTERN

Schema = dict[str, Any]
Path = tuple[str | int, ...]

_CREDENTIALS = re.compile(r"//[^/@\s]+@")
"""User and password in a URL."""

LONGEST_VALUE = 80
FEW_FIELDS = 8
PRESERVES = "x-kubernetes-preserve-unknown-fields"
HINTS = {
    S3_PATTERN: "write s3://bucket/folder/",
    SOURCE_PATTERN: "write s3://bucket/folder/, hf://org/name[@revision][:pattern], ms://org/name, or a path",
}
"""How to write what a pattern asks for."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a field.

    Attributes:
        path: the field.
        message: what is wrong.
        remedy: what to do; empty where the message says so.
        value: what stands there; None where nothing does.
    """

    path: Path
    message: str
    remedy: str = ""
    value: Any = field(default=None, compare=False)

    @property
    def field(self) -> str:
        """The field as people write it: spec.training.rewards[0].name."""
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")

    @property
    def shown(self) -> Any:
        """The value as it may be shown: a text short and without credentials."""
        return shorten(self.value) if isinstance(self.value, str) else self.value

    @property
    def text(self) -> str:
        """The whole in one line."""
        shown = "" if self.value is None or isinstance(self.value, dict | list) else f"={shorten(self.value)}"
        said = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return f"{self.field}{shown}: {said}" if self.path else said


def shorten(value: Any) -> str:
    """Return a value as it is shown in a message."""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    text = _CREDENTIALS.sub("//***@", text)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def check(value: Any, schema: Schema, path: Path, root: Schema) -> Iterator[Problem]:
    """Yield everything that is wrong with `value` and below it.

    Args:
        value: what is checked.
        schema: of this value.
        path: where it stands.
        root: schema of the whole spec, in which the place of a misplaced field is looked up.
    """
    kind = schema.get("type")
    wrong = _wrong_type(value, str(kind)) if kind else None
    if wrong is not None:
        yield Problem(path, f"must be {_article(str(kind))}, not {_kind_of(value)}", wrong or _described(schema), value)
        return
    if isinstance(value, dict):
        yield from _object(value, schema, path, root)
    elif isinstance(value, list):
        yield from _list(value, schema, path, root)
    else:
        yield from _scalar(value, schema, path)


def without_nulls(value: Any, schema: Schema) -> Any:
    """Return a copy without fields that are null: the API server drops these as well."""
    if isinstance(value, dict) and PRESERVES not in schema:
        inner = schema.get("properties", {})
        return {key: without_nulls(item, inner.get(key, {})) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item, schema.get("items", {})) for item in value]
    return value


def _object(value: dict[str, Any], schema: Schema, path: Path, root: Schema) -> Iterator[Problem]:
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value and not any(to_camel(str(key)) == name for key in value):
            yield Problem((*path, name), "is missing", f"give it: {_described(properties[name])}")
    for key, item in value.items():
        if key in properties:
            yield from check(item, properties[key], (*path, key), root)
        elif PRESERVES not in schema and properties:
            yield Problem((*path, str(key)), "unknown field", _suggestion(str(key), list(properties), root), item)
    if "maxProperties" in schema and len(value) > schema["maxProperties"]:
        yield Problem(path, f"has {len(value)} entries", f"at most {schema['maxProperties']} are allowed")


def _list(value: list[Any], schema: Schema, path: Path, root: Schema) -> Iterator[Problem]:
    low, high = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        bound = f"at least {low} are needed" if len(value) < low else f"at most {high} are allowed"
        yield Problem(path, f"has {len(value)} entries", bound)
    for place, item in enumerate(value):
        yield from check(item, schema.get("items", {}), (*path, place), root)


def _scalar(value: Any, schema: Schema, path: Path) -> Iterator[Problem]:
    for keyword, holds, message in SCALAR_RULES:
        if keyword in schema and not holds(value, schema):
            yield Problem(path, message(schema), _remedy(keyword, value, schema), value)
            return


SCALAR_RULES: tuple[tuple[str, Callable[[Any, Schema], bool], Callable[[Schema], str]], ...] = (
    (
        "enum",
        lambda value, schema: value in schema["enum"],
        lambda schema: "must be one of " + ", ".join(map(str, schema["enum"])),
    ),
    (
        "minimum",
        lambda value, schema: value > schema["minimum"] if schema.get("exclusiveMinimum") else value >= schema["minimum"],
        lambda schema: f"must be {'above' if schema.get('exclusiveMinimum') else 'at least'} {schema['minimum']:.15g}",
    ),
    (
        "maximum",
        lambda value, schema: value < schema["maximum"] if schema.get("exclusiveMaximum") else value <= schema["maximum"],
        lambda schema: f"must be {'below' if schema.get('exclusiveMaximum') else 'at most'} {schema['maximum']:.15g}",
    ),
    (
        "multipleOf",
        lambda value, schema: value % schema["multipleOf"] == 0,
        lambda schema: f"must be a multiple of {schema['multipleOf']:.15g}",
    ),
    ("minLength", lambda value, schema: len(value) >= schema["minLength"], lambda schema: "must not be empty"),
    (
        "maxLength",
        lambda value, schema: len(value) <= schema["maxLength"],
        lambda schema: f"must have at most {schema['maxLength']} characters",
    ),
    (
        "pattern",
        lambda value, schema: re.search(schema["pattern"], value) is not None,
        lambda schema: "is not written as it must be",
    ),
)


def _remedy(keyword: str, value: Any, schema: Schema) -> str:
    if keyword == "enum":
        close = get_close_matches(str(value), [str(item) for item in schema["enum"]], n=1)
        return f"did you mean {close[0]}?" if close else ""
    if keyword == "multipleOf":
        step = schema["multipleOf"]
        return f"use {value - value % step:.15g} or {value - value % step + step:.15g}"
    if keyword == "pattern":
        return HINTS.get(schema["pattern"], f"it must match {schema['pattern']}")
    return ""


def _suggestion(key: str, known: list[str], root: Schema) -> str:
    """What was probably meant: another spelling, a field with a similar name, or one that belongs elsewhere."""
    if to_camel(key) in known:
        return f"write {to_camel(key)}"
    if close := get_close_matches(to_camel(key), known, n=1, cutoff=0.75):
        return f"did you mean {close[0]}?"
    if place := _place_of(to_camel(key), root, ("spec",)):
        return f"it belongs below {'.'.join(place)}"
    if close := get_close_matches(to_camel(key), known, n=1):
        return f"did you mean {close[0]}?"
    return f"known are {', '.join(known)}" if len(known) <= FEW_FIELDS else "see docs/reference.md"


def _place_of(key: str, schema: Schema, path: tuple[str, ...]) -> tuple[str, ...] | None:
    properties = schema.get("properties", {})
    if key in properties:
        return path
    places = (_place_of(key, child, (*path, name)) for name, child in properties.items())
    return next((place for place in places if place is not None), None)


def _wrong_type(value: Any, kind: str) -> str | None:
    """None when the type is right; else the remedy, which may be empty."""
    right = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "integer": _is_number(value) and float(value).is_integer(),
        "number": _is_number(value),
    }[kind]
    if right:
        return None
    if isinstance(value, str) and kind in ("integer", "number", "boolean") and re.fullmatch(r"[-+.\w]+", value):
        return "remove the quotes" if _reads_as(value, kind) else ""
    if kind == "string" and not isinstance(value, dict | list):
        return f'write "{shorten(value)}"'
    return "write a list: [...]" if kind == "array" and not isinstance(value, dict) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reads_as(text: str, kind: str) -> bool:
    if kind == "boolean":
        return text.lower() in ("true", "false")
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and (kind == "number" or number.is_integer())


def _article(kind: str) -> str:
    return {"object": "a mapping", "array": "a list", "integer": "an integer"}.get(kind, f"a {kind}")


def _kind_of(value: Any) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", dict: "a mapping", list: "a list"}
    if isinstance(value, float) and not math.isfinite(value):
        return "an infinite or undefined number"
    return names.get(type(value), "null")


def _described(schema: Schema) -> str:
    """The first sentence of a field's description."""
    text = str(schema.get("description", ""))
    return text.partition(". ")[0].rstrip(".")
