"""Room in the cache on a real folder: leases say what is in use, and of the rest the least recently used is removed."""

import os
import threading
from pathlib import Path

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.quantities import bytes_of
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.leases import beating, hand_over, kept, live
from rewardfl_trainer.staging.room import Limit, reserve
from rewardfl_trainer.staging.views import publish
from tests.unit.staged_caches import digest, let_die, opened, place, put, reserve_for, use_long_ago, wanted


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


def test_a_lease_that_was_given_free_does_not_come_back_through_a_thread_that_still_works(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    lease = cache.lease
    assert lease is not None
    lease.release()

    put(cache, "late", b"late")
    lease.beat()

    assert live(cache.own) == []


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
