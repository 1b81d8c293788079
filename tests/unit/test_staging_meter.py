"""What is counted while files are staged, and how it is told: in a document, in a line, and to people."""

from pathlib import Path

import pytest

from rewardfl_api import staged
from rewardfl_api.progress import FILE_NAME_MAX_CHARACTERS, FILES_SHOWN, PROGRESS_MAX_BYTES, Results, StagedFile, StagingProgress
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.staging.meter import Meter


def states(meter: Meter) -> list[tuple[str, str, int]]:
    return [(file.name, file.state, file.bytes_done) for file in meter.snapshot().files]


def test_each_file_is_told_with_its_state_and_bytes() -> None:
    meter = Meter()
    for name, size in (("a", 100), ("b", 200), ("c", 300), ("d", 400)):
        meter.expect(name, name, size)
    meter.expect("b", "b", 200).add(50)
    meter.expect("c", "c", 300).cached()
    whole = meter.expect("d", "d", 400)
    whole.add(400)
    whole.done()

    now = meter.snapshot()

    assert states(meter) == [("a", "waiting", 0), ("b", "fetching", 50), ("c", "cached", 300), ("d", "done", 400)]
    assert (now.bytes_done, now.bytes_total) == (750, 1000)
    assert (now.files_done, now.files_total, now.files_cached, now.bytes_cached) == (2, 4, 1, 300)
    assert "2 of 4 files, 1 from the cache" in meter.line()


def test_what_another_stager_has_fetched_counts_as_there_and_makes_no_rate() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    file = meter.expect("a", "a", 100)
    file.add_present(60)
    now[0] = 1.0
    file.add(20)

    assert states(meter) == [("a", "fetching", 80)]
    assert meter.snapshot().bytes_per_second == 20


def test_the_rate_is_that_of_the_last_seconds() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    file = meter.expect("a", "a", 1000)
    file.add_present(400)
    now[0] = 2.0
    file.add(100)
    assert (meter.snapshot().bytes_done, meter.snapshot().bytes_per_second) == (500, 50)

    for second in range(3, 40):
        now[0] = float(second)
        meter.snapshot()
    assert meter.snapshot().bytes_per_second == 0
    file.add(-100)
    assert meter.snapshot().bytes_done == 400


def test_a_file_that_is_fetched_again_takes_back_its_bytes_and_one_that_was_replaced_its_size() -> None:
    meter = Meter()
    file, other = meter.expect("a", "a", 100), meter.expect("b", "b", 10)
    other.add(10)
    file.add(90)

    file.take_back()
    file.resize(150)
    assert (meter.snapshot().bytes_done, meter.snapshot().bytes_total) == (10, 160)

    file.add(150)
    file.done()
    file.done()
    assert (meter.snapshot().bytes_done, meter.snapshot().files_done) == (160, 1)


def test_of_many_files_the_largest_are_told_of_in_the_order_in_which_they_are_fetched() -> None:
    meter = Meter()
    for number in range(2000):
        meter.expect(number, f"video-{number}", 10)
    for number in range(FILES_SHOWN):
        meter.expect(("shard", number), f"shard-{number}", 1000 + number)

    now = meter.snapshot()

    assert [file.name for file in now.files] == [f"shard-{number}" for number in range(FILES_SHOWN)]
    assert now.files_total == 2000 + FILES_SHOWN


def test_of_a_long_name_the_end_is_told() -> None:
    meter = Meter()
    meter.expect("a", "folder/" * 40 + "model.safetensors", 1)

    (file,) = meter.snapshot().files

    assert len(file.name) == FILE_NAME_MAX_CHARACTERS
    assert file.name.startswith("…")
    assert file.name.endswith("folder/model.safetensors")


def test_the_longest_names_leave_a_document_that_the_operator_reads(tmp_path: Path) -> None:
    meter = Meter()
    for number in range(FILES_SHOWN):
        meter.expect(number, "\U0001f642" * 200, 2**40 + number)
    reporter = Reporter(None, service_account_dir=tmp_path)

    reporter.update(phase="Staging", staging=meter.snapshot())
    with_files = reporter.text()
    uri = "s3://b/" + "ü" * 2000
    reporter.update(phase="Staging", message="m" * 1024, results=Results(lora=uri, report=uri, metrics=uri))
    without = reporter.text()

    assert with_files.count("\U0001f642") > 0
    assert max(len(with_files.encode()), len(without.encode())) <= PROGRESS_MAX_BYTES
    assert '"filesTotal":20' in without
    assert '"lora"' in without


GIGABYTE = 10**9
HALF = StagingProgress(
    bytes_done=31 * GIGABYTE,
    bytes_total=126 * GIGABYTE,
    bytes_per_second=1e9,
    files_done=8,
    files_total=24,
    files_cached=7,
    bytes_cached=11 * GIGABYTE,
    files=[
        StagedFile(name="high/1.safetensors", state="fetching", bytes_done=2 * GIGABYTE, bytes_total=10 * GIGABYTE),
        StagedFile(name="vae.pth", state="cached", bytes_done=GIGABYTE, bytes_total=GIGABYTE),
    ],
)


@pytest.mark.parametrize(
    ("staging", "text"),
    [
        (HALF, "31.0 GB of 126.0 GB (24%) at 1.0 GB/s, 95s left, 8 of 24 files (7 cached, 11.0 GB)"),
        (StagingProgress(bytes_done=5, bytes_total=5), "5 B of 5 B (100%) at 0 B/s"),
        (StagingProgress(files_total=1), "0 B of 0 B at 0 B/s, 0 of 1 file"),
    ],
)
def test_staging_is_one_line_for_people(staging: StagingProgress, text: str) -> None:
    assert staged.summary(staging) == text


def test_the_files_are_listed_with_what_they_lack() -> None:
    assert list(staged.table_of_files(HALF)) == [
        "fetching     2.0 GB of 10.0 GB  high/1.safetensors",
        "cached                  1.0 GB  vae.pth",
        "and 22 smaller files",
    ]
