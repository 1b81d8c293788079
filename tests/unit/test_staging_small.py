"""Many small files: they are fetched in batches, and one that fails, waits or changes costs the others nothing."""

import errno
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.uris import parse_source
from rewardfl_trainer.staging import fetch
from rewardfl_trainer.staging.buffers import Buffers
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.fetch import Fetcher
from rewardfl_trainer.staging.leases import Lease
from rewardfl_trainer.staging.meter import Meter
from rewardfl_trainer.staging.part import RANGE_BYTES, map_path
from rewardfl_trainer.staging.plan import PlannedFile
from rewardfl_trainer.staging.reading import Reader
from rewardfl_trainer.staging.remote import Digest, RemoteFile
from rewardfl_trainer.staging.small import MOST_FILES, SmallFiles, batches
from rewardfl_trainer.staging.sources import Kind, Request
from rewardfl_trainer.storage_errors import ObjectChangedError

REQUEST = Request("dataset", "s3://bucket/", Kind.DATASET, parse_source("s3://bucket/"))


@dataclass
class Memory:
    """A storage in memory. What it is asked, it is asked through the interface that all storages have."""

    contents: dict[str, bytes]
    announced: dict[str, bytes] = field(default_factory=dict)
    refused: str = ""
    gate: threading.Event | None = None
    asked: list[str] = field(default_factory=list)

    def stat(self, request: Request, key: str) -> RemoteFile | None:
        return RemoteFile(request, key, len(self.contents[key]), sha256(self.contents[key]).hexdigest()[:8])

    def list(self, request: Request, prefix: str) -> list[RemoteFile]:
        return [file for key in self.contents if (file := self.stat(request, key)) and key.startswith(prefix)]

    def place(self, file: RemoteFile) -> tuple[str, ...]:
        return ("s3", "e", "bucket", file.key)

    def read(self, file: RemoteFile, start: int, into: memoryview) -> Iterator[int]:
        self.asked.append(file.key)
        if self.gate is not None:
            self.gate.wait(30)
        if file.key == self.refused:
            raise RewardFLError(Reason.STORAGE_ACCESS_DENIED, file.subject)
        if file.version != sha256(self.contents[file.key]).hexdigest()[:8]:
            raise ObjectChangedError(file.subject)
        into[:] = self.contents[file.key][start : start + len(into)]
        yield len(into)

    def digests(self, file: RemoteFile) -> Sequence[Digest]:
        content = self.announced.get(file.key, self.contents[file.key])
        return [Digest("sha256", sha256(content).hexdigest())]

    def close(self) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path)
    cache.lease = Lease.new(cache.own, "team/job on pod")
    return cache


@pytest.fixture
def storage() -> Memory:
    return Memory({f"{number}.mp4": b"%d" % number * 5000 for number in range(40)})


def planned(storage: Memory) -> list[PlannedFile]:
    return [PlannedFile(file, storage, storage.place(file)) for file in storage.list(REQUEST, "")]


def fetcher(cache: Cache, meter: Meter | None = None, cpus: int = 1) -> Fetcher:
    return Fetcher(cache, meter or Meter(), attempts=1, cpus=cpus)


def there(cache: Cache, storage: Memory) -> dict[str, bytes]:
    """The contents in the cache, by the keys of the objects that they are of."""
    return {
        each.file.key: cache.blob_path(cache.used[each.place]).read_bytes()
        for each in planned(storage)
        if each.place in cache.used
    }


def of_sizes(*sizes: int) -> list[PlannedFile]:
    return [
        PlannedFile(RemoteFile(REQUEST, str(number), size, "v"), Memory({}), (str(number),)) for number, size in enumerate(sizes)
    ]


def lengths(files: list[PlannedFile], threads: int) -> list[int]:
    found = batches(files, threads)
    assert [each for batch in found for each in batch] == files
    return [len(batch) for batch in found]


def test_batches_keep_the_order_give_every_thread_some_and_are_no_larger_than_a_range() -> None:
    assert lengths(of_sizes(*[1000] * 100), threads=4) == [MOST_FILES] * 6 + [4]
    assert lengths(of_sizes(*[1000] * 20), threads=8) == [2] * 10
    assert lengths(of_sizes(1000, 1000), threads=8) == [1, 1]
    half = RANGE_BYTES // 2
    assert lengths(of_sizes(half, half, 1, RANGE_BYTES, *[0] * 28), threads=1) == [2, 1, 16, 13]
    assert lengths([], threads=8) == []


def test_every_file_arrives_with_its_content_and_is_counted(cache: Cache, storage: Memory) -> None:
    storage.contents["empty.mp4"] = b""
    storage.contents["odd.mp4"] = b"x" * 4097
    storage.contents["again.mp4"] = storage.contents["7.mp4"]
    meter = Meter()

    fetcher(cache, meter).fetch(planned(storage))

    assert there(cache, storage) == storage.contents
    told = meter.snapshot()
    assert (told.files_done, told.bytes_done) == (43, sum(map(len, storage.contents.values())))
    assert cache.lease is not None
    assert Lease.read(cache.lease.path).contents == {sha256(content).hexdigest() for content in storage.contents.values()}
    assert list((cache.own / "parts").iterdir()) == []


def test_what_has_arrived_before_an_error_stays_and_the_next_start_fetches_the_rest(cache: Cache, storage: Memory) -> None:
    storage.refused = "12.mp4"
    with pytest.raises(RewardFLError) as refused:
        fetcher(cache).fetch(planned(storage))
    assert refused.value.reason is Reason.STORAGE_ACCESS_DENIED
    storage.refused = ""
    before = set(there(cache, storage))
    assert "12.mp4" not in before
    storage.asked.clear()

    fetcher(cache).fetch(planned(storage))

    assert there(cache, storage) == storage.contents
    assert not before & set(storage.asked)


def test_a_file_that_cannot_be_flushed_keeps_no_other_out(cache: Cache, storage: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    flush, broken = os.fsync, len(storage.contents["21.mp4"]) + 1
    storage.contents["21.mp4"] = b"x" * broken

    def fails_for_one(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fails_for_one)
    batch = planned(storage)[16:32]
    assert "21.mp4" in {each.file.key for each in batch}
    meter = Meter()
    with pytest.raises(OSError, match="Input/output error"):
        SmallFiles(cache, meter, Reader(attempts=1), Buffers(1)).fetch(batch)

    assert {each.file.key for each in batch if each.place not in cache.used} == {"21.mp4"}
    assert meter.snapshot().files_done == 15


def test_what_a_large_file_of_the_same_name_has_left_goes(cache: Cache, storage: Memory) -> None:
    map_path(cache.part_path(("s3", "e", "bucket", "1.mp4"))).write_text("{}")

    fetcher(cache).fetch(planned(storage))

    assert list((cache.own / "parts").iterdir()) == []


def test_a_file_that_another_stager_has_is_waited_for_after_the_others(cache: Cache, storage: Memory) -> None:
    other = Cache(cache.root)
    held = next(each for each in planned(storage) if each.file.key == "3.mp4")
    stage = threading.Thread(target=lambda: fetcher(cache).fetch(planned(storage)))
    with other.lock(held.place, lambda: None):
        stage.start()
        for _ in range(1000):
            if len(there(cache, storage)) == 39:
                break
            threading.Event().wait(0.02)
        assert set(storage.contents) - set(there(cache, storage)) == {"3.mp4"}, "all others were fetched meanwhile"
        part = other.part_path(held.place)
        part.write_bytes(storage.contents["3.mp4"])
        other.commit(held.place, held.file.version, held.file.size)
    stage.join(30)

    assert there(cache, storage) == storage.contents
    assert "3.mp4" not in storage.asked


def test_a_file_that_changed_since_it_was_listed_is_fetched_as_it_is_now(cache: Cache, storage: Memory) -> None:
    files = planned(storage)
    storage.contents["5.mp4"] = b"the new content"

    fetcher(cache).fetch(files)

    assert there(cache, storage)["5.mp4"] == b"the new content"


def test_a_file_that_is_never_what_was_announced_fails_the_fetch_and_leaves_nothing(cache: Cache, storage: Memory) -> None:
    storage.announced["5.mp4"] = b"something else"

    with pytest.raises(RewardFLError, match=r"5\.mp4: its content changed or did not match its checksum") as refused:
        fetcher(cache).fetch(planned(storage))

    assert refused.value.reason is Reason.STAGED_FILE_CORRUPT
    assert "5.mp4" not in there(cache, storage)
    assert not cache.part_path(("s3", "e", "bucket", "5.mp4")).exists()


def test_a_signal_that_does_not_wake_the_main_thread_ends_the_fetch_all_the_same(
    cache: Cache, storage: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes just before the thread begins to wait does not; here it goes to another thread, every time."""

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    monkeypatch.setattr(fetch, "SIGNAL_SECONDS", 0.1)
    storage.gate = threading.Event()
    before = signal.signal(signal.SIGUSR1, stop)

    def send_to_itself() -> None:
        while not storage.asked:
            threading.Event().wait(0.01)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    sender = threading.Thread(target=send_to_itself)
    try:
        sender.start()
        with pytest.raises(StoppedError):
            fetcher(cache).fetch(planned(storage))
    finally:
        storage.gate.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
