"""The cache on a real folder: contents and views."""

import errno
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.quantities import bytes_of
from rewardfl_trainer.precompute.digests import Digests
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.remote import Digest, RemoteFile
from rewardfl_trainer.staging.room import reserve
from rewardfl_trainer.staging.views import Manifest, publish, write_manifest
from tests.unit.staged_caches import REQUEST, digest, opened, place, put


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


def test_a_digest_of_another_kind_is_not_taken_for_a_sha256(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    put(cache, "a", b"same")
    assert cache.lease is not None
    small = RemoteFile(REQUEST, "x", 4, "v9", Digest("git-sha1", digest(b"same")))
    large = RemoteFile(REQUEST, "x", 4, "v9", Digest("sha256", digest(b"same")))

    assert reserve(cache, cache.lease, {place("x"): small}) == {place("x")}
    assert reserve(cache, cache.lease, {place("x"): large}) == set()


@pytest.mark.parametrize(
    ("text", "size"), [("500", 500), ("1.5k", 1500), ("200Gi", 200 * 2**30), ("2T", 2 * 10**12), ("1500m", 1), ("0.5Ki", 512)]
)
def test_quantities_are_read_as_kubernetes_does(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "-1", "1gi", "1.2.3", "1iG"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number of bytes"):
        bytes_of(text)
