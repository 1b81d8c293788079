"""Writes the parts of the documentation that the models already say: the reasons, and every field.

A document marks such a part with `<!-- generated: NAME -->` and `<!-- end -->`; what stands between them is replaced.
`python -m rewardfl_api.docs --write docs/*.md`, or `--check` to fail when a part is not current.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import crd, reasons, roll_docs
from .spec import RewardFLJobSpec
from .status import RewardFLJobStatus

_PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render_fields(model: type[RewardFLJobSpec] | type[RewardFLJobStatus], root: str) -> str:
    """Return a Markdown table of every field below `root`, from the same schema that the API server gets."""
    rows = [f"| `{path}` | {kind} | {default} | {text} |" for path, kind, default, text in _fields(crd.structural(model), root)]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _fields(schema: dict[str, Any], path: str) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for name, child in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        if child.get("properties"):
            rows += _fields(child, here)
            continue
        required = name in schema.get("required", [])
        default = f"`{child['default']}`" if "default" in child else ("required" if required else "")
        text = child.get("description", "").replace("|", "\\|")
        rows.append((here, _kind(child), default, text))
        if child.get("items", {}).get("properties"):
            rows += _fields(child["items"], f"{here}[]")
    return rows


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema["type"])
    low, high = schema.get("minimum"), schema.get("maximum")
    return f"{kind}, {low:.15g} to {high:.15g}" if low is not None and high is not None else kind


PARTS: dict[str, Callable[[], str]] = {
    "reasons": reasons.render,
    "spec-fields": lambda: render_fields(RewardFLJobSpec, "spec"),
    "status-fields": lambda: render_fields(RewardFLJobStatus, "status"),
    **roll_docs.PARTS,
}


def fill(text: str, parts: Mapping[str, Callable[[], str]] = PARTS) -> str:
    """Return `text` with every generated part renewed.

    Raises:
        KeyError: a part has a name that is not in `parts`.
    """
    return _PART.sub(lambda part: part[1] + parts[part["name"]]() + part[3], text)


def main() -> None:
    """Renew the generated parts, or check them."""
    parser = argparse.ArgumentParser(description="Generate the parts of the documentation that the models say.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write the files")
    action.add_argument("--check", action="store_true", help="fail when a file differs")
    parser.add_argument("files", nargs="+", type=Path, help="Markdown files")
    arguments = parser.parse_args()
    for path in arguments.files:
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if arguments.write and after != before:
            path.write_text(after, encoding="utf-8")
        elif after != before:
            sys.exit(f"{path}: a generated part is not current; run `make generate`")


if __name__ == "__main__":
    main()
