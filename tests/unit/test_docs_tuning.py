"""docs/tuning.md holds what the estimate counts now, and nothing that does not fit."""

import re

import pytest

from rewardfl_trainer.estimate.fit import CANDIDATES, GPU_BYTES
from rewardfl_trainer.estimate.step import Video
from rewardfl_trainer.estimate.tables import FULL, LORA, line
from tests.cluster.paths import REPOSITORY

TEXT = (REPOSITORY / "docs" / "tuning.md").read_text(encoding="utf-8")
PARTS = dict(re.findall(r"<!-- generated: ([a-z-]+) -->\n(.*?)<!-- end -->", TEXT, re.DOTALL))
FITS = {"fits-lora-one": LORA, "fits-lora-eight": LORA, "fits-full-eight": FULL, "fits-full-sixteen": FULL}
CELL = re.compile(
    r"`(?P<preset>\w+)`(?P<offload> \+ offload)?: (?P<needed>\d+\.\d)(, CPU \d+)?|none; (?P<least>\d+\.\d) at the least"
)


def cells(line_of_table: str) -> list[str]:
    return [cell.strip() for cell in line_of_table.strip("|").split("|")]


def rows(part: str) -> list[list[str]]:
    return [cells(row) for row in PARTS[part].splitlines()[2:]]


@pytest.mark.slow
def test_the_smallest_row_is_what_the_estimate_counts_now() -> None:
    row = LORA.row(Video(17, 480, 480))
    assert line(row, 1) in PARTS["fits-lora-one"]
    assert line(row, 8) in PARTS["fits-lora-eight"]


@pytest.mark.parametrize("part", FITS)
def test_a_table_has_a_row_for_each_size_and_a_column_for_each_gpu(part: str) -> None:
    assert cells(PARTS[part].splitlines()[0])[2:] == [f"{size} GB" for size in GPU_BYTES]
    assert [tuple(row[:2]) for row in rows(part)] == [
        (f"{video.width}x{video.height}", str(video.num_frames)) for video in FITS[part].videos
    ]


@pytest.mark.parametrize("part", FITS)
def test_what_a_cell_names_fits_its_gpu_and_what_fits_nothing_does_not(part: str) -> None:
    presets = {settings.preset for settings in CANDIDATES}
    for row in rows(part):
        for cell, available in zip(row[2:], GPU_BYTES.values(), strict=True):
            found = CELL.fullmatch(cell)
            assert found is not None, cell
            if found["least"]:
                assert float(found["least"]) * 1e9 > available
            else:
                assert found["preset"] in presets
                assert float(found["needed"]) * 1e9 <= available
