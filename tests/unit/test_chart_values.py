"""values.yaml says everything about a value: the schema and the table are made of it."""

import json

import pytest

from charts.generate import outputs, read, render_schema, render_table


def test_the_generated_files_are_current() -> None:
    for path, wanted in outputs().items():
        assert path.read_text(encoding="utf-8") == wanted, path


def test_the_table_has_a_row_for_each_value_and_shows_its_default() -> None:
    table = render_table(read("s:\n  # -- First.\n  # @schema {enum: [x, y]}\n  a: x\n"))

    assert table.splitlines()[2:] == ['| `s.a` | `x`, `y` | `"x"` | First. |']


def test_a_value_without_a_description_or_with_a_wrong_schema_is_not_generated() -> None:
    with pytest.raises(ValueError, match="a has no description"):
        read("# a comment is none\na: 1\n")
    with pytest.raises(ValueError, match="the @schema of a is 'x'"):
        read("# -- Described.\n# @schema x\na: 1\n")


def test_a_section_is_closed_and_an_open_mapping_is_one_value() -> None:
    first = "  # -- First,\n  # and more.\n  # @schema {minimum: 1}\n  a: 1\n"
    text = f"s:\n{first}  # -- Open.\n  # @schema {{additionalProperties: true}}\n  o: {{b: 2}}\n"

    section = json.loads(render_schema(read(text)))["properties"]["s"]

    assert section["additionalProperties"] is False
    assert section["properties"]["a"] == {"description": "First, and more.", "default": 1, "type": "integer", "minimum": 1}
    assert section["properties"]["o"]["additionalProperties"] is True
