"""The work queue: one turn at a time for each key, spaced, later and later after failures."""

import asyncio
import time
from time import monotonic

import pytest

from rewardfl_operator.queue import WorkQueue


async def test_a_key_that_is_added_often_gets_one_turn() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    for _ in range(5):
        queue.add("job")

    assert await queue.get() == "job"
    queue.done("job")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)


async def test_a_key_never_has_two_turns_at_once_and_is_not_forgotten_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    queue.add("job")
    await queue.get()
    queue.add("job")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.done("job")

    assert await asyncio.wait_for(queue.get(), 1) == "job"


async def test_turns_of_a_key_are_spaced_and_others_go_on_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0.2)
    queue.add("a")
    await queue.get()
    queue.done("a")
    ended = monotonic()
    queue.add("a")
    queue.add("b")

    assert await queue.get() == "b"
    assert await queue.get() == "a"
    assert monotonic() - ended >= 0.2


async def test_a_delayed_key_waits_unless_it_is_added_again_without_delay() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    queue.add("job", 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)

    queue.add("job")

    assert await asyncio.wait_for(queue.get(), 1) == "job"
    queue.done("job")
    assert len(queue) == 0


async def test_failures_are_tried_again_later_each_time_and_success_begins_anew() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    delays = []
    for _ in range(10):
        queue.add("job")
        await queue.get()
        delays.append(queue.retry("job"))
    queue.add("job")
    await queue.get()
    queue.done("job")
    queue.add("job")
    await queue.get()

    assert delays[0] < 1 < delays[4] < delays[9] < 150
    assert queue.retry("job") < 1


async def test_the_servers_own_wish_is_the_least_delay() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    queue.add("job")
    await queue.get()

    assert queue.retry("job", at_least_seconds=7) >= 7


async def test_a_change_does_not_bring_forward_what_the_server_wants_to_wait_for() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    queue.add("job")
    await queue.get()
    began = time.monotonic()
    queue.retry("job", at_least_seconds=0.3)

    queue.add("job")

    assert await asyncio.wait_for(queue.get(), 2) == "job"
    assert time.monotonic() - began >= 0.3


async def test_one_waiter_is_woken_for_every_key() -> None:
    queue: WorkQueue[int] = WorkQueue(spacing_seconds=0)
    waiters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0.01)

    for key in range(3):
        queue.add(key)

    assert sorted(await asyncio.wait_for(asyncio.gather(*waiters), 1)) == [0, 1, 2]


async def test_a_forgotten_key_leaves_nothing_behind() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=60)
    queue.add("job")
    await queue.get()
    queue.forget("job")

    queue.add("job")

    assert await asyncio.wait_for(queue.get(), 1) == "job"


async def test_what_is_urgent_goes_before_what_has_waited_for_long() -> None:
    queue: WorkQueue[str] = WorkQueue(spacing_seconds=0)
    queue.add("old", -60)
    queue.add("urgent", urgent=True)
    queue.add("later", 3600, urgent=True)

    assert [await queue.get(), await queue.get()] == ["urgent", "old"]
    assert len(queue) == 1
