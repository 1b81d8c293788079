"""The cache on a real folder: contents, views, leases, and what is removed when room is needed."""

import errno
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.quantities import bytes_of
from rewardfl_api.uris import parse_source
from rewardfl_trainer.precompute.digests import Digests
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.leases import DEAD_AFTER_SECONDS, Lease, beating, hand_over, kept, live
from rewardfl_trainer.staging.remote import Digest, RemoteFile
from rewardfl_trainer.staging.room import Limit, reserve
from rewardfl_trainer.staging.sources import Kind, Request
from rewardfl_trainer.staging.views import Manifest, publish, write_manifest

REQUEST = Request("training.model_paths", "s3://bucket/x", Kind.MODEL, parse_source("s3://bucket/x"))


def place(key: str, scheme: str = "s3") -> tuple[str, ...]:
    return (scheme, "endpoint", "bucket", *key.split("/"))


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def put(cache: Cache, key: str, content: bytes, version: str = "v1") -> Path:
    """Do what a fetcher does."""
    where = place(key)
    with cache.lock(where, lambda: None):
        cache.part_path(where).write_bytes(content)
    return cache.commit(where, version, len(content), sha256=digest(content))


def wanted(*sizes: tuple[str, int]) -> dict[tuple[str, ...], RemoteFile]:
    return {place(key): RemoteFile(REQUEST, key, size, "v1") for key, size in sizes}


def opened(root: Path, holder: str = "team/job on pod-0") -> Cache:
    """The cache as a stager opens it."""
    cache = Cache(root)
    cache.lease = Lease.new(cache.own, holder)
    return cache


def let_die(lease: Lease | None) -> None:
    """Make a lease look as if its holder had been killed long ago."""
    assert lease is not None
    past = lease.path.stat().st_mtime - DEAD_AFTER_SECONDS - 1
    os.utime(lease.path, (past, past))


def use_long_ago(cache: Cache, content: bytes, seconds: float) -> None:
    blob = cache.blob_path(digest(content))
    status = blob.stat()
    os.utime(blob, ns=(status.st_atime_ns - int(seconds * 1e9), status.st_mtime_ns))


def reserve_for(cache: Cache, limit: int | None, *sizes: tuple[str, int]) -> set[tuple[str, ...]]:
    assert cache.lease is not None
    return reserve(cache, cache.lease, wanted(*sizes), None if limit is None else Limit(f"{limit}", limit))


def test_the_same_bytes_lie_on_the_disk_once_whatever_they_are_called(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    first, second = put(cache, "a.bin", b"same"), put(cache, "b/c.bin", b"same")

    assert first == second
    assert [path.name for path in (tmp_path / "blobs").rglob("*") if path.is_file()] == [digest(b"same")]
    assert cache.is_current(place("a.bin"), "v1", 4)
    assert cache.is_current(place("b/c.bin"), "v1", 4)
    assert not list((tmp_path / ".rewardfl/parts").iterdir())


def test_bytes_whose_checksum_a_hub_announces_are_taken_from_whatever_they_came_from(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, "a.bin", b"same")

    assert not cache.is_current(place("a.bin", "hf"), "commit", 4)
    assert not cache.is_current(place("a.bin", "hf"), "commit", 5, digest(b"same"))
    assert cache.is_current(place("a.bin", "hf"), "commit", 4, digest(b"same"))
    assert cache.is_current(place("a.bin", "hf"), "commit", 4), "now it is known by its version as well"


@pytest.mark.parametrize("change", ["truncate", "edit", "remove", "replace by a folder"])
def test_a_content_that_was_changed_since_is_not_taken_for_what_it_was(tmp_path: Path, change: str) -> None:
    cache = Cache(tmp_path)
    blob = put(cache, "a.bin", b"content")
    match change:
        case "truncate":
            os.truncate(blob, 3)
        case "edit":
            blob.write_bytes(b"CONTENT")
        case "remove":
            blob.unlink()
        case _:
            blob.unlink()
            blob.mkdir()

    assert not cache.is_current(place("a.bin"), "v1", 7)
    if change != "replace by a folder":
        assert put(cache, "a.bin", b"content").read_bytes() == b"content"
        assert cache.is_current(place("a.bin"), "v1", 7)


def test_contents_are_read_only(tmp_path: Path) -> None:
    assert stat.S_IMODE(put(Cache(tmp_path), "a.bin", b"x").stat().st_mode) == 0o444


def test_a_folder_that_cannot_be_written_to_is_named_with_user_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as caught:
        Cache(tmp_path / "file/cache")
    assert caught.value.errno == errno.ENOTDIR
    read_only = Path("/sys/no-such-cache")

    with pytest.raises(RewardFLError, match=f"cache_dir={read_only}: user {os.getuid()} cannot write there") as refused:
        Cache(read_only)

    assert (refused.value.reason, refused.value.exit_code) == (Reason.IO_FAILED, ExitCode.IO_ERROR)
    assert "chown" in refused.value.hint


def test_two_jobs_use_different_versions_of_one_key_at_the_same_time(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, "a.bin", b"old")
    old = publish(cache, {place("a.bin"): digest(b"old")})
    put(cache, "a.bin", b"new!", "v2")

    new = publish(cache, {place("a.bin"): digest(b"new!")})

    assert old.joinpath(*place("a.bin")).read_bytes() == b"old"
    assert new.joinpath(*place("a.bin")).read_bytes() == b"new!"


def test_a_view_takes_no_space_and_is_built_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    blob = put(cache, "a/b.bin", b"content")
    files = {place("a/b.bin"): digest(b"content"), place("c.bin"): digest(b"content")}

    view = publish(cache, files)
    before = view.stat().st_ino

    assert view.joinpath(*place("a/b.bin")).samefile(blob)
    assert publish(Cache(tmp_path), files) == view
    assert view.stat().st_ino == before
    assert [path.name for path in (tmp_path / "views").iterdir()] == [view.name]


@pytest.mark.parametrize("change", ["a file is missing", "a file is new", "a file was replaced", "two were exchanged"])
def test_a_view_that_was_changed_is_built_anew(tmp_path: Path, change: str) -> None:
    cache = Cache(tmp_path)
    for content in (b"one", b"two"):
        put(cache, "a.bin", content)
    files = {place("folder/one.bin"): digest(b"one"), place("folder/two.bin"): digest(b"two")}
    one, two = (publish(cache, files).joinpath(*where) for where in files)
    match change:
        case "a file is missing":
            one.unlink()
        case "a file is new":
            one.with_name("more.bin").touch()
        case "a file was replaced":
            one.unlink()
            one.write_bytes(b"ONE")
        case _:
            one.rename(tmp_path / "aside")
            two.rename(one)
            (tmp_path / "aside").rename(two)

    publish(cache, files)

    assert {path.name: path.read_bytes() for path in one.parent.iterdir()} == {"one.bin": b"one", "two.bin": b"two"}


def test_the_trainer_knows_the_digest_of_a_staged_file_without_reading_it_until_it_is_edited(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    put(cache, "a.bin", b"content")
    path = publish(cache, {place("a.bin"): digest(b"content")}).joinpath(*place("a.bin"))
    digests = Digests(tmp_path / "digests")
    before = path.stat()
    path.write_bytes(b"unseen!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert digests.of(path) == digest(b"content")

    path.write_bytes(b"edited")
    assert digests.of(path) == digest(b"edited")


@pytest.mark.parametrize("edited", [False, True])
def test_a_copy_in_a_view_is_taken_for_its_content_until_it_is_edited(tmp_path: Path, edited: bool) -> None:
    cache = Cache(tmp_path)
    blob = put(cache, "a.bin", b"content")
    files = {place("a.bin"): digest(b"content")}
    view = publish(cache, files)
    write_manifest(cache, view.name, Manifest({"/".join(place("a.bin")): digest(b"content")}, copied_bytes=7))
    path = view.joinpath(*place("a.bin"))
    path.unlink()
    shutil.copy2(blob, path)
    if edited:
        path.chmod(0o644)
        path.write_bytes(b"CONTENT")
    before = path.stat().st_ino

    publish(cache, files)

    assert path.read_bytes() == b"content"
    assert (path.stat().st_ino == before) is not edited


def test_stagers_that_build_one_view_at_the_same_moment_share_it(tmp_path: Path) -> None:
    names = [f"{number}.bin" for number in range(50)]
    first = Cache(tmp_path)
    for name in names:
        put(first, name, name.encode())
    files = {place(name): digest(name.encode()) for name in names}
    ready = threading.Barrier(4)

    def build(_number: int) -> Path:
        cache = opened(tmp_path)
        ready.wait()
        return publish(cache, files)

    with ThreadPoolExecutor(4) as pool:
        views = set(pool.map(build, range(4)))

    (view,) = views
    assert sorted(path.name for path in view.rglob("*.bin")) == sorted(names)
    assert [path.name for path in (tmp_path / "views").iterdir()] == [view.name]


def test_of_what_nobody_uses_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    before = Cache(tmp_path)
    for key, seconds in (("new", 10), ("oldest", 1000), ("old", 100)):
        put(before, key, key.encode() * 10)
        use_long_ago(before, key.encode() * 10, seconds)
    cache = opened(tmp_path)

    assert reserve_for(cache, 120, ("coming", 40)) == {place("coming")}

    assert [key for key in ("new", "old", "oldest") if cache.is_intact(digest(key.encode() * 10))] == ["new", "old"]


def test_a_use_counts_from_the_last_time_its_view_was_used(tmp_path: Path) -> None:
    before = Cache(tmp_path)
    for key, seconds in (("in a view", 1000), ("in none", 100)):
        put(before, key, key.encode())
        use_long_ago(before, key.encode(), seconds)
    publish(before, {place("in a view"): digest(b"in a view")})

    reserve_for(opened(tmp_path), 20, ("coming", 10))

    assert before.is_intact(digest(b"in a view"))
    assert not before.is_intact(digest(b"in none"))


def test_what_is_removed_gives_its_space_back_though_views_name_it(tmp_path: Path) -> None:
    before = Cache(tmp_path)
    blob = put(before, "a", b"a" * 40)
    view = publish(before, {place("a"): digest(b"a" * 40)})
    with blob.open("rb") as held:
        reserve_for(opened(tmp_path), 60, ("coming", 40))

        assert os.fstat(held.fileno()).st_nlink == 0
    assert not view.exists()


def test_what_a_live_lease_names_is_never_removed(tmp_path: Path) -> None:
    running = opened(tmp_path, "team/running on pod-0")
    put(running, "used", b"used" * 10)
    publish(running, {place("used"): digest(b"used" * 10)})
    use_long_ago(running, b"used" * 10, 1e6)

    with pytest.raises(
        RewardFLError, match=r"cache\.maxSize=60 \(60 bytes\): 30 bytes are to be fetched, .* use 40 of"
    ) as caught:
        reserve_for(opened(tmp_path), 60, ("coming", 30))

    assert (caught.value.reason, caught.value.exit_code) == (Reason.DISK_TOO_SMALL, ExitCode.IO_ERROR)
    assert running.is_intact(digest(b"used" * 10))
    let_die(running.lease)
    assert reserve_for(opened(tmp_path), 60, ("coming", 35)), "what was refused is not waited for"
    assert not running.is_intact(digest(b"used" * 10))


def test_nothing_is_removed_for_what_would_not_fit_all_the_same(tmp_path: Path) -> None:
    running = opened(tmp_path)
    put(running, "used", b"u" * 40)
    put(Cache(tmp_path), "unused", b"n" * 10)

    with pytest.raises(RewardFLError, match=r"cache\.maxSize"):
        reserve_for(opened(tmp_path), 60, ("coming", 30))

    assert running.is_intact(digest(b"n" * 10))


def test_a_plan_that_is_larger_than_the_cache_may_be_is_refused_with_both_numbers(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert cache.lease is not None

    with pytest.raises(RewardFLError, match=r"cache\.maxSize=1Ki: is 1024 bytes, and what the job names has 1100") as caught:
        reserve(cache, cache.lease, wanted(("a", 600), ("b", 500)), Limit("1Ki", bytes_of("1Ki")))

    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)


def test_what_other_stagers_are_fetching_counts_once_and_until_it_is_there(tmp_path: Path) -> None:
    one, two = opened(tmp_path, "a/one on x"), opened(tmp_path, "a/two on y")
    reserve_for(one, 100, ("shared", 60))
    reserve_for(two, 100, ("shared", 60), ("own", 20))

    with pytest.raises(RewardFLError, match=r"cache\.maxSize"):
        reserve_for(opened(tmp_path), 100, ("third", 30))
    put(one, "shared", b"s" * 60)

    assert reserve_for(opened(tmp_path), 100, ("third", 20)) == {place("third")}


def test_what_a_stager_waits_for_is_not_removed_before_it_has_found_it(tmp_path: Path) -> None:
    waiting, other = opened(tmp_path), opened(tmp_path)
    reserve_for(waiting, 100, ("shared", 60))
    reserve_for(other, 100, ("shared", 60))
    put(other, "shared", b"s" * 60)
    assert other.lease is not None
    other.lease.release()

    with pytest.raises(RewardFLError, match="running jobs use 60"):
        reserve_for(opened(tmp_path), 100, ("third", 50))

    assert waiting.is_current(place("shared"), "v1", 60)


def test_what_a_killed_stager_left_unfinished_makes_room(tmp_path: Path) -> None:
    killed = opened(tmp_path)
    reserve_for(killed, None, ("big", 8192))
    killed.part_path(place("big")).write_bytes(b"x" * 8192)
    let_die(killed.lease)

    reserve_for(opened(tmp_path), 10_000, ("coming", 5000))

    assert not killed.part_path(place("big")).exists()


def test_a_content_found_at_the_start_is_in_use_before_anything_is_fetched(tmp_path: Path) -> None:
    put(Cache(tmp_path), "there", b"t" * 40)
    cache = opened(tmp_path)

    missing = reserve_for(cache, 100, ("there", 40), ("coming", 10))

    assert missing == {place("coming")}
    with pytest.raises(RewardFLError, match="running jobs use 40"):
        reserve_for(opened(tmp_path), 100, ("third", 60))


def test_a_content_that_another_stager_brought_meanwhile_is_in_use_once_it_was_found(tmp_path: Path) -> None:
    waiting, other = opened(tmp_path), Cache(tmp_path)
    reserve_for(waiting, 100, ("a", 40))
    put(other, "a", b"a" * 40)

    assert waiting.is_current(place("a"), "v1", 40)

    with pytest.raises(RewardFLError, match="running jobs use 40"):
        reserve_for(opened(tmp_path), 100, ("b", 80))


def test_a_lease_is_read_though_its_holder_was_killed_while_it_wrote(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, "a", b"a")
    assert cache.lease is not None
    with cache.lease.path.open("a", encoding="utf-8") as file:
        file.write('{"content": "abc", "pla')

    (read,) = live(cache.own)

    assert (read.holder, read.contents, read.needs) == ("team/job on pod-0", {digest(b"a")}, {})


def test_a_lease_that_was_cleared_away_while_its_holder_slept_comes_back_with_all_it_named(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, "a", b"a")
    let_die(cache.lease)
    assert live(cache.own) == []
    assert cache.lease is not None

    cache.lease.beat()

    assert [lease.contents for lease in live(cache.own)] == [{digest(b"a")}]


def test_a_beating_lease_stays_alive_while_its_holder_is_busy(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert cache.lease is not None
    let_die(cache.lease)

    with beating(cache.lease, seconds=0.01):
        deadline = threading.Event()
        while not live(cache.own) and not deadline.wait(0.01):
            pass

    assert len(live(cache.own)) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_the_trainer_goes_on_with_the_lease_and_gives_it_free_however_it_ends(tmp_path: Path, fails: bool) -> None:
    cache, work = opened(tmp_path / "cache"), tmp_path / "work"
    put(cache, "a", b"a" * 40)
    publish(cache, {place("a"): digest(b"a" * 40)})
    assert cache.lease is not None
    hand_over(cache.lease, work)
    let_die(cache.lease)
    other = opened(tmp_path / "cache", "other/job on pod")

    def train() -> None:
        with kept(work):
            with pytest.raises(RewardFLError, match="running jobs use 40"):
                reserve_for(other, 60, ("b", 50))
            if fails:
                raise TimeoutError

    if fails:
        with pytest.raises(TimeoutError):
            train()
    else:
        train()

    assert reserve_for(other, 60, ("b", 50))
    assert not cache.is_intact(digest(b"a" * 40))


def test_a_run_that_staged_nothing_needs_no_lease(tmp_path: Path) -> None:
    with kept(tmp_path / "work"), kept(None):
        pass
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("text", "size"), [("500", 500), ("1.5k", 1500), ("200Gi", 200 * 2**30), ("2T", 2 * 10**12), ("1500m", 1), ("0.5Ki", 512)]
)
def test_quantities_are_read_as_kubernetes_does(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "-1", "1gi", "1.2.3", "1iG"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes"):
        bytes_of(text)


def test_a_digest_of_another_kind_is_not_taken_for_a_sha256(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, "a", b"same")
    assert cache.lease is not None
    small = RemoteFile(REQUEST, "x", 4, "v9", Digest("git-sha1", digest(b"same")))
    large = RemoteFile(REQUEST, "x", 4, "v9", Digest("sha256", digest(b"same")))

    assert reserve(cache, cache.lease, {place("x"): small}) == {place("x")}
    assert reserve(cache, cache.lease, {place("x"): large}) == set()
