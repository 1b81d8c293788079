"""The thread that works while training goes on: what is asked of it is done, in its order, and tried again when it fails."""

import threading
import time
from collections.abc import Callable

import pytest

from rewardfl_trainer.background import Background

PAUSE = 0.05


class Work:
    """Tasks that write down that they were done, and wait or fail when they are told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failing: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.background = Background("test", PAUSE)

    def put(self, name: str, label: str | None = None, *, first: bool = False) -> None:
        self.background.put(name, self.task(label or name), first=first)

    def task(self, label: str) -> Callable[[], bool]:
        def run() -> bool:
            self.gate.wait(30)
            self.done.append(label)
            return label not in self.failing

        return run


@pytest.fixture
def work() -> Work:
    return Work()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def alive() -> int:
    return sum(thread.name == "test" for thread in threading.enumerate())


def test_tasks_are_done_in_order_and_those_that_come_first_before_the_rest(work: Work) -> None:
    work.gate.clear()
    work.put("a")
    until(lambda: alive() == 1 and work.background.finish(0.01) == ["a"])
    for name in ("b", "c"):
        work.put(name)
    work.put("urgent", first=True)
    work.gate.set()
    assert work.background.finish() == []
    assert work.done == ["a", "urgent", "b", "c"]


def test_a_task_that_still_waits_is_replaced_by_one_of_its_name(work: Work) -> None:
    work.gate.clear()
    work.put("a")
    until(lambda: work.background.finish(0.01) == ["a"])
    work.put("b", "old")
    work.put("b", "new")
    work.gate.set()
    assert work.background.finish() == []
    assert work.done == ["a", "new"]


def test_what_fails_is_tried_again_after_a_pause_and_holds_up_nothing(work: Work) -> None:
    work.failing = {"a", "b"}
    started = time.monotonic()
    for name in ("a", "b", "c"):
        work.put(name)
    until(lambda: work.done.count("b") == 3)
    assert work.done[:3] == ["a", "b", "c"]
    assert time.monotonic() - started > 2 * PAUSE
    work.failing.clear()
    until(lambda: alive() == 0)
    assert work.background.finish() == []
    assert work.done.count("c") == 1


def test_the_end_tries_once_more_and_names_what_is_left(work: Work) -> None:
    work.failing = {"a"}
    work.background.retry_seconds = 1000
    work.put("a")
    until(lambda: work.done == ["a"])
    assert work.background.finish() == ["a"]
    assert work.done == ["a", "a"]
    until(lambda: alive() == 0)
    work.failing.clear()
    assert work.background.finish() == []
    assert work.done == ["a"] * 3


def test_the_end_waits_no_longer_than_it_may_and_names_what_is_under_way(work: Work) -> None:
    work.gate.clear()
    for name in ("a", "b"):
        work.put(name)
    assert work.background.finish(PAUSE) == ["a", "b"]
    work.gate.set()
    assert work.background.finish() == []


def test_without_work_there_is_no_thread(work: Work) -> None:
    assert work.background.finish() == []
    work.put("a")
    until(lambda: alive() == 0)
    assert work.done == ["a"]
