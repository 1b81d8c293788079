"""The command line's answers, and the documents that the models write."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewardfl_api import __version__, docs
from rewardfl_api.cli import app
from rewardfl_api.errors import Reason

runner = CliRunner()


def test_version_is_printed_alone() -> None:
    assert runner.invoke(app, ["version"]).output == f"{__version__}\n"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_can_be_explained(reason: Reason) -> None:
    answer = runner.invoke(app, ["explain", reason.value.lower()])
    assert answer.exit_code == 0
    assert answer.output.startswith(reason.value)


def test_an_unknown_reason_is_answered_with_the_known_ones() -> None:
    answer = runner.invoke(app, ["explain", "Nonsense"])
    assert answer.exit_code == 64
    assert "NoFaceInFirstFrame" in answer.output


def test_tiny_models_into_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = runner.invoke(app, ["tiny-models", str(tmp_path / "file" / "below")])
    assert answer.exit_code == 1
    assert len(answer.output.strip().splitlines()) == 1
    assert "name a folder that can be written" in answer.output


def test_the_generated_parts_of_the_documentation_are_replaced_and_nothing_else() -> None:
    text = "before\n<!-- generated: reasons -->\nold\n<!-- end -->\nafter\n"
    filled = docs.fill(text)
    assert filled.startswith("before\n<!-- generated: reasons -->\n| reason |")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled.splitlines()
    assert docs.fill(filled) == filled
