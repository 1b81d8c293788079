"""Writes what is said elsewhere: of values.yaml the chart's values.schema.json and its README's table, and its version.

values.yaml is the one place where a value is written: its default, above it `# -- ` and what it is for, and where that is
more than the default's type, `# @schema` and what it may be (JSON Schema, in YAML's flow style). A mapping with entries is
closed, so that a misspelt key is refused; `additionalProperties` in its `@schema` opens it and makes it one value.
`python -m charts.generate --write`, or `--check` to fail when a file is not current. It renders no templates.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rewardfl_api import __version__

CHART = Path(__file__).resolve().parent / "rewardfl"
_VERSION = re.compile(r'^(version: |appVersion: "| +image: rewardfl-[a-z]+:)[^\s"]+("?)$', re.MULTILINE)
_PART = re.compile(r"(<!-- generated: values -->\n).*?(<!-- end -->)", re.DOTALL)
_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
Schema = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """One value of the chart, or a section of them.

    Attributes:
        path: where it stands, such as `image.tag`.
        default: what it is when nobody sets it.
        description: what it is for; empty for a section without one.
        limits: what its `@schema` says.
        children: the values of a section; empty for a value.
    """

    path: str
    default: Any
    description: str
    limits: Schema
    children: tuple["Value", ...]

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    def schema(self) -> Schema:
        """Return what may stand here, as JSON Schema."""
        described = {"description": self.description} if self.description else {}
        if self.children:
            return described | _closed(self.children)
        kind = {} if "enum" in self.limits else {"type": _TYPES[type(self.default)]}
        return described | {"default": self.default} | kind | self.limits


def read(text: str) -> tuple[Value, ...]:
    """Return the values that `text`, a values.yaml, declares.

    Raises:
        ValueError: a value has no description, or an `@schema` is no mapping.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("values.yaml: must be a mapping")
    return _read(root, yaml.safe_load(text), text.splitlines(), "")


def _read(node: yaml.MappingNode, defaults: dict[str, Any], lines: list[str], prefix: str) -> tuple[Value, ...]:
    values = []
    for key, child in node.value:
        path = f"{prefix}{key.value}"
        description, limits = _comment(lines, key.start_mark.line, path)
        is_section = isinstance(child, yaml.MappingNode) and child.value and "additionalProperties" not in limits
        children = _read(child, defaults[key.value], lines, f"{path}.") if is_section else ()
        if not children and not description:
            raise ValueError(f"values.yaml:{key.start_mark.line + 1}: {path} has no description: write `# -- ...` above it")
        values.append(Value(path, defaults[key.value], description, limits, children))
    return tuple(values)


def _comment(lines: list[str], number: int, path: str) -> tuple[str, Schema]:
    """Return the description and the `@schema` that stand right above line `number`."""
    block: list[str] = []
    while number > 0 and lines[number - 1].strip().startswith("#"):
        number -= 1
        block.insert(0, lines[number].strip().removeprefix("#").strip())
    limits: Any = {}
    if block and block[-1].startswith("@schema"):
        limits = yaml.safe_load(block.pop().removeprefix("@schema"))
        if not isinstance(limits, dict):
            raise ValueError(f"values.yaml: the @schema of {path} is {limits!r}: must be a mapping such as {{minimum: 1}}")
    starts = [index for index, line in enumerate(block) if line.startswith("--")]
    return (" ".join(block[starts[-1] :]).removeprefix("--").strip() if starts else ""), limits


def _closed(values: tuple[Value, ...]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": {value.name: value.schema() for value in values}}


def render_schema(values: tuple[Value, ...]) -> str:
    """Return values.schema.json."""
    schema = _closed(values)
    # Helm puts it into the values of a chart that is a part of another one.
    schema["properties"] = {"global": {"type": "object"}} | schema["properties"]
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", "title": "rewardfl", **schema}, indent=2) + "\n"


def render_table(values: tuple[Value, ...]) -> str:
    """Return a Markdown table of every value."""
    rows = [f"| `{value.path}` | {_kind(value)} | `{_shown(value.default)}` | {_text(value)} |" for value in _leaves(values)]
    return "\n".join(["| value | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _leaves(values: tuple[Value, ...]) -> Iterator[Value]:
    for value in values:
        yield from _leaves(value.children) if value.children else (value,)


def _kind(value: Value) -> str:
    schema = value.schema()
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    kind = schema["type"]
    return str(kind) if isinstance(kind, str) else " or ".join(kind)


def _shown(default: Any) -> str:
    return json.dumps(default).replace("|", "\\|")


def _text(value: Value) -> str:
    return value.description.replace("|", "\\|")


def outputs() -> dict[Path, str]:
    """Return what the generated files should hold."""
    about = CHART / "Chart.yaml"
    return of_values(CHART) | {about: with_version(about.read_text(encoding="utf-8"), __version__)}


def of_values(chart: Path) -> dict[Path, str]:
    """Return what those files of a chart should hold that follow from its values.yaml."""
    values = read((chart / "values.yaml").read_text(encoding="utf-8"))
    readme = chart / "README.md"
    filled = _PART.sub(lambda part: part[1] + render_table(values) + part[2], readme.read_text(encoding="utf-8"))
    return {chart / "values.schema.json": render_schema(values), readme: filled}


def with_version(about: str, version: str) -> str:
    """Return Chart.yaml with the version of chart, operator and images."""
    return _VERSION.sub(lambda line: line[1] + version + line[2], about)


def main() -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Generate the chart's values.schema.json, the table in its README, its version.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the files")
    action.add_argument("--check", action="store_true", help="fail when a file differs")
    arguments = parser.parse_args()
    for path, wanted in outputs().items():
        if arguments.write:
            path.write_text(wanted, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != wanted:
            sys.exit(f"{path.relative_to(Path.cwd())}: not current; run `make generate`")


if __name__ == "__main__":
    main()
