"""docs/operations.md says what may be changed before a job goes on, and no remedy says otherwise without another output."""

import re

import pytest

from rewardfl_api.errors import Reason
from rewardfl_api.reasons import EXPLANATIONS
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.identity import FREE, TUNABLE
from tests.cluster.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
SPELLED = {name: field.alias or name for name, field in TrainingParameters.model_fields.items()}
CHANGES_ROWS = "eval_rows"
"""Free by itself, but the rows that are held out are missing from those that are trained on."""


def named(kind: str) -> set[str]:
    (row,) = re.findall(rf"^\| {kind}[^|]*\| (.*) \|$", PAGE, re.MULTILINE)
    return set(re.findall(r"`(\w+)`", row.partition("of `spec.training`")[2]))


@pytest.mark.parametrize(("kind", "parameters"), [("free", FREE - {CHANGES_ROWS}), ("with a warning", TUNABLE)])
def test_the_page_names_the_parameters_that_may_be_changed(kind: str, parameters: set[str]) -> None:
    assert named(kind) == {SPELLED[name] for name in parameters}


def test_what_needs_another_output_is_bound() -> None:
    bound = {SPELLED[name] for name in SPELLED if name not in FREE | TUNABLE} | {SPELLED[CHANGES_ROWS]}
    (row,) = re.findall(r"^\| refused with .*$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`([a-z]\w+)`", row.split("|")[2])) <= bound


@pytest.mark.parametrize("reason", [Reason.HELD_OUT_REWARD_FELL, Reason.KL_TOO_HIGH, Reason.FACES_VANISHED, Reason.OUT_OF_MEMORY])
def test_a_remedy_names_only_what_a_job_may_go_on_with_or_says_that_it_needs_another_output(reason: Reason) -> None:
    going_on = re.sub(r"with another output, [^.]*", "", EXPLANATIONS[reason].remedy)
    words = set(re.findall(r"\w+", going_on))
    assert not words & {SPELLED[name] for name in SPELLED if name not in FREE | TUNABLE}
    assert not words & {"rows", "pixels", "evalRows"}
