"""Entries on disk are whole or not there, whoever writes, dies or shares the folder; remembered digests are never stale."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.precompute import digests, store
from rewardfl_trainer.precompute.digests import Digests
from rewardfl_trainer.precompute.store import Key, Store

KEY = Key("prefix", "ab" * 32, '{"what": "went in"}')


def tensors() -> dict[str, Tensor]:
    return {
        "latents_BCthw": torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
        "found_BS": torch.tensor([[True, False]]),
    }


def assert_equal(found: dict[str, Tensor] | None, expected: dict[str, Tensor]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    Store(tmp_path).write(KEY, tensors())
    assert_equal(Store(tmp_path).read(KEY), tensors())
    assert Store(tmp_path).read(Key("prefix", "cd" * 32, "")) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda _content: b"",
        lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
        lambda content: content.replace(b"found_BS", b"found_BX"),
    ],
    ids=["a byte short", "half", "empty", "a bit flipped", "a name changed"],
)
def test_a_damaged_entry_is_dropped_and_can_be_made_again(tmp_path: Path, damage: object) -> None:
    kept = Store(tmp_path)
    kept.write(KEY, tensors())
    path = kept.path(KEY)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert kept.read(KEY) is None
    assert not path.exists()
    kept.write(KEY, tensors())
    assert_equal(kept.read(KEY), tensors())


def die_while_writing(folder: Path) -> None:
    """Write an entry and be killed when its content is in the file, but not under its name."""
    store.sync = lambda _path: os.kill(os.getpid(), signal.SIGKILL)
    Store(folder).write(KEY, tensors())


def hold(folder: Path, held: "multiprocessing.synchronize.Event") -> None:  # type: ignore[name-defined]
    with Store(folder).claim(KEY):
        held.set()
        time.sleep(60)


def test_a_writer_that_is_killed_leaves_no_entry_and_its_rest_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path,))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    kept = Store(tmp_path)
    assert kept.read(KEY) is None
    assert len(list(kept.path(KEY).parent.iterdir())) == 1, "the unfinished file"
    monkeypatch.setattr(store, "STALE_SECONDS", 0)
    kept.write(KEY, tensors())
    assert list(kept.path(KEY).parent.iterdir()) == [kept.path(KEY)]


def test_a_claim_is_one_process_and_ends_with_it(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    held = fork.Event()
    child = fork.Process(target=hold, args=(tmp_path, held))
    child.start()
    assert held.wait(30)
    with Store(tmp_path).claim(KEY) as ours:
        assert not ours
    child.kill()
    child.join(30)
    with Store(tmp_path).claim(KEY) as ours:
        assert ours


def test_a_disk_that_is_too_small_is_refused_with_needed_and_free_bytes(tmp_path: Path) -> None:
    kept = Store(tmp_path)
    free = kept.free_bytes()
    kept.check_room(free // 2, "training.cache_prefix")
    with pytest.raises(RewardFLError, match=r"\d+ bytes are needed .* \d+ are free.*training\.cache_prefix") as caught:
        kept.check_room(2 * free, "training.cache_prefix")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.DISK_TOO_SMALL, ExitCode.IO_ERROR)


def test_a_cache_folder_that_cannot_be_made_is_named_with_the_switches(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RewardFLError, match=r"cache_dir=.*file.*training\.cache_conditions") as caught:
        Store(tmp_path / "file")
    assert caught.value.reason == Reason.IO_FAILED


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are really read."""
    seen: list[Path] = []
    real = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: (seen.append(path), real(path))[1])
    return seen


def settled(path: Path, content: bytes, age_seconds: float = 60) -> Path:
    path.write_bytes(content)
    then = time.time() - age_seconds
    os.utime(path, (then, then))
    return path


EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path, reads: list[Path]) -> None:
    weights = settled(tmp_path / "weights", b"")
    assert [Digests(tmp_path / "digests").of(weights) for _ in range(3)] == [EMPTY_SHA256] * 3
    assert len(reads) == 1
    settled(weights, b"more")
    assert Digests(tmp_path / "digests").of(weights) != EMPTY_SHA256
    settled(tmp_path / "other", b"less")
    (tmp_path / "other").replace(weights)  # the same path, size and time, but another inode
    os.utime(weights, ns=(0, 0))
    assert len(reads) == 2
    Digests(tmp_path / "digests").of(weights)
    assert len(reads) == 3


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    weights = settled(tmp_path / "weights", b"new", age_seconds=0)
    known = Digests(tmp_path / "digests")
    assert known.of(weights) == known.of(weights)
    assert len(reads) == 2


def test_a_damaged_record_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    weights, folder = settled(tmp_path / "weights", b""), tmp_path / "digests"
    Digests(folder).of(weights)
    for record in folder.glob("*.json"):
        record.write_text("[1")
    assert Digests(folder).of(weights) == EMPTY_SHA256
    assert len(reads) == 2


def test_several_processes_share_the_reading(tmp_path: Path, reads: list[Path]) -> None:
    files = [settled(tmp_path / f"shard-{number}", bytes([number])) for number in range(4)]
    for number in range(2):
        Digests(tmp_path / "digests").share(files, number, 2)
    assert sorted(reads) == files
    assert reads[0] == files[0]
    assert len({Digests(tmp_path / "digests").of(file) for file in files}) == 4
    assert len(reads) == 4
