"""docs/guard.md: the simulated figures are what tests/benchmarks/guard.py makes of the trainer's own rule."""

import pytest

from tests.benchmarks.guard import PATIENCE, chance
from tests.cluster.paths import REPOSITORY

PAGE = (REPOSITORY / "docs" / "guard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("rows", "patience"), [(2, 5), (4, 3), (8, 2)])
def test_a_cell_of_the_table_is_what_the_simulation_gives(rows: int, patience: int) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {rows} | ") and " %" in line]
    found = chance(rows, patience)
    assert line.split(" | ")[1 + PATIENCE.index(patience)].removesuffix(" |") == str(found)
    if rows == 2:
        assert f"{found.found:.1%}".replace("%", " %") in PAGE
    else:
        assert found.found > 0.99
