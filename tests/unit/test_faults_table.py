"""Every test that docs/faults.md names exists, and every fault of the operator has one."""

import re

from tests.cluster.paths import REPOSITORY

FAULTS_OF_THE_OPERATOR = {*range(1, 16), 22, 23}
TABLE = (REPOSITORY / "docs" / "faults.md").read_text(encoding="utf-8")


def test_every_fault_names_tests_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) .*$", TABLE, re.MULTILINE)
    assert {int(row) for row in rows} == FAULTS_OF_THE_OPERATOR

    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TABLE)
    assert len(named) > len(rows)
    sources = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")}
    missing = [
        f"{file}::{test}" for file, test in named if not re.search(rf"^(async )?def {test}\(", sources[file], re.MULTILINE)
    ]
    assert missing == []
