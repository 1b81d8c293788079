"""Reads manifests as kubectl does: several documents a file, YAML or JSON, `-` for standard input; and knows each field's line.

PyYAML reads a few things otherwise than Kubernetes: 1e-3 (a text for PyYAML), 2026-01-01 (a date), 1:30 (a number in base 60). A
manifest must mean the same to this program as to kubectl, so the loader here follows kubectl.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .errors import ExitCode, Reason, RewardFLError
from .job import KIND
from .schema import Path as FieldPath
from .schema import Problem

STANDARD_INPUT = "-"
MAX_NODES = 100_000
"""Values in a document, aliases followed; more is a mistake or an attack."""


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Document:
    """One document of a file.

    Attributes:
        file: where it stands; `-` for standard input.
        number: which of the file's documents it is, from 1.
        body: what it says.
        lines: the line of each field.
        problems: what is wrong with the YAML itself.
    """

    file: str
    number: int
    body: Any
    lines: dict[FieldPath, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()

    @property
    def is_job(self) -> bool:
        """Whether it is, or is meant to be, a RewardFLJob."""
        return not isinstance(self.body, dict) or self.body.get("kind", KIND) == KIND

    @property
    def name(self) -> str:
        """The resource's name; empty where it has none."""
        metadata = self.body.get("metadata") if isinstance(self.body, dict) else None
        return str((metadata.get("name") if isinstance(metadata, dict) else None) or "")

    def line(self, path: FieldPath) -> int | None:
        """The line of a field; of one that is missing, that of what should hold it."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read(files: list[str]) -> list[Document]:
    """Return the documents of all files, without empty ones; the items of a List each by itself.

    Raises:
        RewardFLError: a file cannot be read (exit code 66).
    """
    return [document for file in files for document in parse(_text(file), file)]


def parse(text: str, file: str = "the text") -> list[Document]:
    """Return the documents of a text as `read` returns those of a file; `file` is what it is called in messages."""
    return list(_documents(file, text))


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == STANDARD_INPUT else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        message = f"{file}: {why}"
        raise RewardFLError(Reason.BAD_CONFIGURATION, message, "Name a readable file.", ExitCode.MISSING_INPUT) from error


def _documents(file: str, text: str) -> Iterator[Document]:
    number = 1
    try:
        loader = _Loader(text)
        while loader.check_node():
            node: Any = loader.get_node()
            lines: dict[FieldPath, int] = {}
            problems = tuple(_walk(node, (), lines))
            document = Document(file, number, loader.construct_document(node), lines, problems)
            if document.body is not None:
                yield from _items(document)
            number += 1
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        lines = {(): mark.line + 1} if mark is not None else {}
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        problem = Problem((), f"this is no YAML: {said}", "mend the line")
        yield Document(file, number, None, lines, (problem,))


def _items(document: Document) -> Iterator[Document]:
    """The items of a List; any other document as it is."""
    body = document.body
    if not (isinstance(body, dict) and body.get("kind") == "List" and isinstance(body.get("items"), list)):
        yield document
        return
    for place, item in enumerate(body["items"]):
        within = ("items", place)
        lines = {path[2:]: line for path, line in document.lines.items() if path[:2] == within}
        yield Document(document.file, document.number, item, lines, document.problems)


def _walk(node: yaml.Node, path: FieldPath, lines: dict[FieldPath, int]) -> Iterator[Problem]:
    """Note the line of every field, and yield keys that are given twice: kubectl refuses these."""
    lines[path] = node.start_mark.line + 1
    if len(lines) > MAX_NODES:
        raise ValueError(f"it holds more than {MAX_NODES} values")
    if isinstance(node, yaml.SequenceNode):
        for place, item in enumerate(node.value):
            yield from _walk(item, (*path, place), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            here = (*path, str(key.value))
            if here in lines:
                yield Problem(here, f"is given twice, first in line {lines[here]}", "remove one")
            yield from _walk(item, here, lines)
            lines[here] = key.start_mark.line + 1
