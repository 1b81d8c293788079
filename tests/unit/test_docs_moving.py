"""The pages on moving here: ROLL's keys are the converter's, the example is what is printed, UniRL's keys lead to real fields."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rewardfl_api import docs, roll
from rewardfl_api.cli import app
from rewardfl_api.roll_keys import BECOMES, ROLL_DEFAULTS, ROLL_PARAMETERS, WITHOUT_MEANING
from rewardfl_api.training import TrainingParameters
from tests.cluster.paths import REPOSITORY

ROLL = (REPOSITORY / "docs" / "moving-from-roll.md").read_text(encoding="utf-8")
UNIRL = (REPOSITORY / "docs" / "moving-from-unirl.md").read_text(encoding="utf-8")
OURS = re.compile(r"`([a-z]+[A-Z]\w*)[`:]")


def test_every_key_that_the_converter_knows_is_in_a_table() -> None:
    shown = set(re.findall(r"^\| `([\w.]+)` \|", ROLL, re.MULTILINE))
    assert shown >= {*TrainingParameters.model_fields, *roll._USED, *ROLL_DEFAULTS, *WITHOUT_MEANING}


def test_every_key_that_becomes_something_else_has_a_meaning_and_no_other() -> None:
    assert set(BECOMES) == set(roll._USED)


def test_a_parameter_is_either_rolls_or_added() -> None:
    assert set(TrainingParameters.model_fields) > ROLL_PARAMETERS
    assert not ROLL_PARAMETERS & set(WITHOUT_MEANING)
    assert {"kl_weight", "height", "dtype"} < set(TrainingParameters.model_fields) - ROLL_PARAMETERS


def test_the_tables_are_the_converters_own() -> None:
    assert docs.fill(ROLL) == ROLL


def test_the_example_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", ROLL, re.DOTALL))
    Path("reward_fl_config.yaml").write_text(blocks["reward_fl_config.yaml"], encoding="utf-8")
    (command,) = re.findall(r"^    \$ rewardfl (convert .*)$", ROLL, re.MULTILINE)
    answer = CliRunner().invoke(app, command.split())
    assert answer.exit_code == 0
    said = re.findall(r"^    (rewardfl convert: .*)$", ROLL, re.MULTILINE)
    assert answer.stderr.splitlines() == said
    written = Path("job.yaml").read_text(encoding="utf-8")
    assert [f"# {line.removeprefix('rewardfl convert: ')}" for line in said] == written.splitlines()[: len(said)]
    assert written.endswith(blocks["job.yaml"])
    assert written.splitlines()[len(said)] == "apiVersion: rewardfl.io/v1alpha1"


def test_what_unirls_keys_lead_to_exists() -> None:
    known = {field.alias for field in TrainingParameters.model_fields.values()} | {"gpusPerNode"}
    named = {name for row in UNIRL.splitlines() if row.startswith("| `") for name in OURS.findall(row.split("|")[2])}
    assert len(named) > 25
    assert named <= known
