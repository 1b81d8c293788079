"""Everything that is wrong with a RewardFLJob, at once: what the API server and the operator would refuse, one problem a field.

Three passes over one resource: the CRD's schema, the models' checks of single fields on what is left, and the rules over several
fields, of which those are told that do not follow from a problem named before. Pure.
"""

import copy
import re
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from . import crd
from .contradictions import Collector, Contradiction
from .job import API_VERSION, GROUP, KIND, NAME_MAX_CHARACTERS
from .schema import Path, Problem, Schema, check, shorten, without_nulls
from .spec import RewardFLJobSpec

Raw = dict[str, Any]

NAME_PATTERN = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
PLACEHOLDER = "s3://placeholder/"
"""Stands in for a required text that was wrong, so that the rest can be checked."""

MAX_ROUNDS = 8
_SNAKE_CASE = re.compile(r"\b[a-z]+[0-9]*(?:_[a-z0-9]+)+\b")


def problems_of(body: Any) -> list[Problem]:
    """Return what is wrong with a RewardFLJob; nothing when the API server and the operator would take it."""
    if not isinstance(body, dict):
        return [Problem((), "not a resource", f"begin with apiVersion: {API_VERSION} and kind: {KIND}")]
    found = [*_head(body), *_metadata(body.get("metadata"))]
    if "spec" not in body or body["spec"] is None:
        return [*found, Problem(("spec",), "is missing", "say at least dataset, output and training")]
    schema = _spec_schema()
    spec = without_nulls(body["spec"], schema)
    found += check(spec, schema, ("spec",), schema)
    if isinstance(spec, dict):
        found += _models(spec, [problem.path for problem in found])
    return found


@cache
def _spec_schema() -> Schema:
    version = crd.generate()["spec"]["versions"][0]
    return dict(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def _head(body: Raw) -> Iterator[Problem]:
    if body.get("apiVersion") != API_VERSION:
        group = str(body.get("apiVersion", "")).partition("/")[0]
        remedy = f"write {API_VERSION}" + ("; this program knows no other version" if group == GROUP else "")
        what = "unknown version" if group == GROUP else "unknown" if group else "is missing"
        yield Problem(("apiVersion",), what, remedy, body.get("apiVersion"))
    if body.get("kind") != KIND:
        yield Problem(("kind",), "unknown" if body.get("kind") else "is missing", f"write {KIND}", body.get("kind"))
    for key in body:
        if key not in ("apiVersion", "kind", "metadata", "spec", "status"):
            yield Problem((str(key),), "unknown field", "it belongs below spec" if key in _spec_schema()["properties"] else "")


def _metadata(metadata: Any) -> Iterator[Problem]:
    if not isinstance(metadata, dict) or not metadata.get("name"):
        yield Problem(("metadata", "name"), "is missing", "give the job a name")
        return
    name, path = metadata["name"], ("metadata", "name")
    if not isinstance(name, str):
        yield Problem(path, "must be a string", f'write "{shorten(name)}"', name)
    elif len(name) > NAME_MAX_CHARACTERS:
        message = f"must have at most {NAME_MAX_CHARACTERS} characters, since pods are named after it"
        yield Problem(path, message, f"it has {len(name)}", name)
    elif not NAME_PATTERN.fullmatch(name):
        remedy = "use lower-case letters, digits and '-', beginning with a letter"
        yield Problem(path, "cannot be a host name, which it becomes", remedy, name)
    for part in ("labels", "annotations"):
        for key, value in (metadata.get(part) or {}).items() if isinstance(metadata.get(part), dict | None) else ():
            if not isinstance(value, str):
                yield Problem(("metadata", part, str(key)), "must be a string", f'write "{shorten(value)}"', value)
        if not isinstance(metadata.get(part), dict | None):
            yield Problem(("metadata", part), "must be a mapping", "write key: value", metadata[part])


def _models(spec: Raw, known: list[Path]) -> Iterator[Problem]:
    """Let the models check what the schema has left over. What was wrong is taken out, so that it is not told twice."""
    rest = copy.deepcopy(spec)
    removed = [_take_out(rest, path[1:]) for path in known if path[:1] == ("spec",)]
    for _ in range(MAX_ROUNDS):
        collector = Collector()
        try:
            RewardFLJobSpec.model_validate(_completed(rest), context=collector)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                path = item["loc"]
                if not _touches(path, removed):
                    yield _of_field(path, item["msg"].removeprefix("Value error, "), item["input"], spec)
                removed.append(_take_out(rest, path))
            continue
        for contradiction in dict.fromkeys(collector.found):
            if not any(_touches(_path(name), removed) for name in contradiction.fields):
                yield _of_fields(contradiction, spec)
        return


def _of_field(path: Path, message: str, value: Any, spec: Raw) -> Problem:
    """A model's check of one field. Its message names the field itself, in snake_case."""
    return _named(("spec", *path), message, value, spec)


def _of_fields(contradiction: Contradiction, spec: Raw) -> Problem:
    """A rule over several fields, told of the first of them."""
    path = _path(contradiction.fields[0])
    return _named(("spec", *path), contradiction.message, _value_at(spec, path), spec)


def _named(path: Path, message: str, value: Any, spec: Raw) -> Problem:
    """Take field and value from the beginning of a message, since the problem names them."""
    said = resource_spelling(message)
    begin = re.match(rf"(?:[a-zA-Z]+\.)*{re.escape(str(path[-1]))}(?:=(?:'[^']*'|[^:]*))?: (?P<rest>.+)", said, re.DOTALL)
    return Problem(path, begin["rest"] if begin else said, value=None if isinstance(value, dict | list) else value)


def resource_spelling(text: str) -> str:
    """Return `text` with the trainer's names of fields (num_frames) as the resource spells them (numFrames)."""
    return _SNAKE_CASE.sub(lambda name: to_camel(name[0]) if to_camel(name[0]) in _field_names() else name[0], text)


@cache
def _field_names() -> frozenset[str]:
    """Every field of a spec, as the resource spells it."""

    def below(schema: Schema) -> Iterator[str]:
        for name, child in schema.get("properties", {}).items():
            yield name
            yield from below(child)
            yield from below(child.get("items", {}))

    return frozenset(below(_spec_schema()))


def _path(dotted: str) -> Path:
    return tuple(to_camel(step) for step in dotted.split("."))


def _touches(path: Path, removed: list[Path]) -> bool:
    """Whether a field is, holds, or lies within one that was taken out."""
    return any(path[: len(other)] == other[: len(path)] for other in removed)


def _take_out(value: Any, path: Path) -> Path:
    """Delete a field, of a list the whole list, and return what was deleted in the resource's spelling."""
    fields = [str(step) for step in takewhile(lambda step: isinstance(step, str), path)]
    for step in fields[:-1]:
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, dict) and fields:
        value.pop(fields[-1], None)
    return tuple(to_camel(step) for step in fields)


def _completed(spec: Raw) -> Raw:
    """Fill in what is required and was taken out."""
    training = spec.get("training")
    filled = {"rewardModelPath": PLACEHOLDER, **(training if isinstance(training, dict) else {"modelPaths": [PLACEHOLDER]})}
    return {"dataset": PLACEHOLDER, "output": PLACEHOLDER, **spec, "training": filled}


def _value_at(spec: Raw, path: Path) -> Any:
    value: Any = spec
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value
