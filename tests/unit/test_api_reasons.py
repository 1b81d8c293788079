"""The list of reasons is closed: what the code can say is documented, and what is documented the code can say."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from rewardfl_api.errors import Reason
from rewardfl_api.reasons import EXPLANATIONS

REPOSITORY = Path(__file__).parents[2]
TABLE = REPOSITORY / "crds" / "rewardfl_api" / "reasons.py"


def named_in_code() -> Iterator[tuple[str, Path]]:
    """Every `Reason.X` of operator and trainer, but for the table itself."""
    for folder in ("crds/rewardfl_api", "operator/rewardfl_operator", "trainer/rewardfl_trainer"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if path == TABLE:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Reason":
                    yield node.attr, path


def test_every_reason_in_the_code_exists_and_every_reason_that_exists_is_in_the_code() -> None:
    used = {name for name, _ in named_in_code()}

    assert used == {reason.name for reason in Reason}


def test_every_reason_has_a_cause_and_those_that_stop_a_job_a_remedy() -> None:
    nothing_to_do = {reason for reason, text in EXPLANATIONS.items() if not text.remedy}

    assert all(text.cause.endswith(".") for text in EXPLANATIONS.values())
    assert nothing_to_do == {
        Reason.ACCEPTED,
        Reason.PODS_PENDING,
        Reason.STAGING,
        Reason.PREPARING,
        Reason.TRAINING,
        Reason.SAVING,
        Reason.COMPLETED,
        Reason.DISRUPTED,
        Reason.PROGRESS_CURRENT,
        Reason.EARLIER_ATTEMPT,
        Reason.GUARD_ARMED,
        Reason.TERMINATED,
    }


def test_every_reason_is_in_the_handbook() -> None:
    table = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")

    assert {match[1] for match in re.finditer(r"^\| `([A-Z][A-Za-z]+)` \|", table, re.MULTILINE)} >= {
        item.value for item in Reason
    }
