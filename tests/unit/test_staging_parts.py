"""What of an unfinished file counts when its stager was killed, when the power failed, and when it is about something else."""

import json
import os
import random
from pathlib import Path

import pytest

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_trainer.staging import part as parts
from rewardfl_trainer.staging.buffers import Buffers
from rewardfl_trainer.staging.part import RANGE_BYTES, Part, bytes_there, map_path

SIZE = 2 * RANGE_BYTES + 1000
CONTENT = random.Random(1).randbytes(SIZE)


def write(part: Part, *indices: int) -> None:
    buffer = Buffers(1).take()
    for index in indices:
        start, stop = part.bounds(index)
        buffer[: stop - start] = CONTENT[start:stop]
        part.write(index, buffer)


def read(part: Part, index: int) -> bytes:
    buffer = Buffers(1).take()
    part.read(index, buffer)
    start, stop = part.bounds(index)
    return bytes(buffer[: stop - start])


@pytest.mark.parametrize("direct", ["1", "0"])
def test_a_part_goes_on_where_its_stager_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: str) -> None:
    monkeypatch.setenv("REWARDFL_STAGING_DIRECT_IO", direct)
    first = Part(tmp_path / "part", "v1", SIZE)
    write(first, 2, 0)  # and nothing is closed or flushed

    assert bytes_there(tmp_path / "part", "v1", SIZE) == RANGE_BYTES + 1000
    with Part(tmp_path / "part", "v1", SIZE) as second:
        assert second.done == {0, 2}
        assert read(second, 0) == CONTENT[:RANGE_BYTES]
        assert read(second, 2) == CONTENT[2 * RANGE_BYTES :]
        write(second, 1)
        second.finish()
    assert (tmp_path / "part").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
    first.close()


@pytest.mark.parametrize(("version", "size"), [("v2", SIZE), ("v1", SIZE + 1), ("v1", SIZE - 1)])
def test_a_part_of_another_version_or_size_is_not_gone_on_with(tmp_path: Path, version: str, size: int) -> None:
    with Part(tmp_path / "part", "v1", SIZE) as first:
        write(first, 0, 1)

    assert bytes_there(tmp_path / "part", version, size) == 0
    with Part(tmp_path / "part", version, size) as second:
        assert second.done == set()
        assert read(second, 0) == bytes(RANGE_BYTES)


def test_after_a_power_cut_only_what_was_flushed_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "FLUSH_BYTES", 2 * RANGE_BYTES)
    with Part(tmp_path / "part", "v1", SIZE) as first:
        write(first, 1, 0, 2)  # the first two make the bytes after which there is a flush

    monkeypatch.setattr(parts, "BOOT_FILE", tmp_path / "boot")
    (tmp_path / "boot").write_text("another start of the machine\n")
    with Part(tmp_path / "part", "v1", SIZE) as second:
        assert second.done == {0, 1}
    with Part(tmp_path / "part", "v1", SIZE) as third:
        assert third.done == {0, 1}


@pytest.mark.parametrize("torn", ["1", "1\n\0\0\0\0\n2\n", "1\nflushed 9", "1\n9\n2\n", "1\n-1\n2\n", "1\nflushed x\n2\n"])
def test_a_map_counts_up_to_the_first_line_that_is_not_whole(tmp_path: Path, torn: str) -> None:
    Part(tmp_path / "part", "v1", SIZE).close()
    with map_path(tmp_path / "part").open("a") as file:
        file.write(torn)

    with Part(tmp_path / "part", "v1", SIZE) as part:
        assert part.done == ({1} if "\n" in torn else set())


@pytest.mark.parametrize("head", ["", "{}", "[1]", '{"version": 1}', "\0\0"])
def test_a_map_without_its_head_counts_for_nothing(tmp_path: Path, head: str) -> None:
    Part(tmp_path / "part", "v1", SIZE).close()
    map_path(tmp_path / "part").write_text(f"{head}\n0\n1\n")

    with Part(tmp_path / "part", "v1", SIZE) as part:
        assert part.done == set()


def test_a_map_beside_a_part_that_is_too_short_counts_for_nothing(tmp_path: Path) -> None:
    with Part(tmp_path / "part", "v1", SIZE) as part:
        write(part, 0)
    os.truncate(tmp_path / "part", RANGE_BYTES)

    with Part(tmp_path / "part", "v1", SIZE) as part:
        assert part.done == set()


def test_the_place_of_a_large_file_is_taken_at_once(tmp_path: Path) -> None:
    with Part(tmp_path / "part", "v1", SIZE):
        assert (tmp_path / "part").stat().st_blocks * 512 >= SIZE


def test_a_map_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    Part(tmp_path / "part", "v1", SIZE).close()
    (tmp_path / "other").write_text(json.dumps({"version": "v1"}))
    map_path(tmp_path / "part").unlink()
    map_path(tmp_path / "part").symlink_to(tmp_path / "other")

    with pytest.raises(RewardFLError) as caught:
        Part(tmp_path / "part", "v1", SIZE)
    assert caught.value.reason is Reason.UNSAFE_PATH
