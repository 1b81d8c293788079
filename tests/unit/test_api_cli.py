"""The command line's answers, and the documents that the models write."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewardfl_api import __version__, docs
from rewardfl_api.cli import app
from rewardfl_api.errors import ExitCode, Reason

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
    assert answer.exit_code == ExitCode.IO_ERROR
    assert len(answer.output.strip().splitlines()) == 1
    assert "name a folder that can be written" in answer.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["version", "--loud"], "rewardfl version: No such option: --loud; see rewardfl version --help"),
        (["convert"], "rewardfl convert: Missing argument 'configuration'; see rewardfl convert --help"),
        (["convert", "a.yaml", "--compat", "rol"], "Invalid value for '--compat': 'rol' is not one of 'none', 'roll'"),
        (["convert", "a.yaml", "b.yaml"], "Got unexpected extra argument"),
        (["estimate", "-f", "a.yaml", "--gpus", "0"], "rewardfl estimate: Invalid value for '--gpus': "),
        (["merge", "lora", "base"], "Missing option '--output'"),
        (["conver"], "rewardfl: No such command 'conver'. Did you mean 'convert'?; see rewardfl --help"),
        (["--nonsense"], "rewardfl: No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_64(arguments: list[str], said: str) -> None:
    answer = runner.invoke(app, arguments, prog_name="rewardfl")
    assert (answer.exit_code, answer.stdout) == (ExitCode.USAGE, "")
    assert said in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


def test_without_a_command_the_commands_are_shown_and_it_is_wrong_usage() -> None:
    answer = runner.invoke(app, [], prog_name="rewardfl")
    assert answer.exit_code == ExitCode.USAGE
    assert "tiny-models" in answer.output


def test_help_is_no_error() -> None:
    assert runner.invoke(app, ["convert", "--help"]).exit_code == 0


def test_the_generated_parts_of_the_documentation_are_replaced_and_nothing_else() -> None:
    text = "before\n<!-- generated: reasons -->\nold\n<!-- end -->\nafter\n"
    filled = docs.fill(text)
    assert filled.startswith("before\n<!-- generated: reasons -->\n| reason |")
    assert filled.endswith("<!-- end -->\nafter\n")
    assert "old" not in filled.splitlines()
    assert docs.fill(filled) == filled
