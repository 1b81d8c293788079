"""The local cluster stops what it started, and nothing else, even after a session that was killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import paths, slots
from tests.cluster.processes import Processes, Stat
from tests.cluster.report import ClusterError
from tests.cluster.slots import Slot

_HOLD_A_SLOT = """
import sys, time, pathlib
from tests.cluster import slots
slots.state_root = lambda: pathlib.Path(sys.argv[1])
slot = slots.Slot.acquire()
slot.processes.spawn("sleeper", ["sleep", "600"])
print(slot.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state root of the test's own, so that it meets no running cluster."""
    folder = tmp_path / "state"
    monkeypatch.setattr(slots, "state_root", lambda: folder)
    return folder


@pytest.fixture
def other_session(state: Path) -> Iterator[tuple[subprocess.Popen[str], Processes]]:
    """Another process that holds a slot of the same state root, with a program running in it."""
    command = [sys.executable, "-c", _HOLD_A_SLOT, str(state)]
    with subprocess.Popen(command, cwd=paths.REPOSITORY, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        folder = Path(session.stdout.readline().strip())
        yield session, Processes(folder)
        session.kill()
    Processes(folder).stop()


def test_stop_ends_the_program_and_the_children_it_started(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    written = tmp_path / "child"
    processes.spawn("family", ["sh", "-c", f"sleep 600 & echo $! >{written}.part; mv {written}.part {written}; wait"])
    family = processes.stat("family")
    while not written.exists():
        time.sleep(0.01)
    child = Stat.of(int(written.read_text()))
    assert family is not None
    assert child is not None
    processes.stop()
    assert not family.is_running
    assert not child.is_running
    assert not processes.is_running("family")


def test_a_pid_that_the_system_gave_to_another_process_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        line = Path(f"/proc/{stranger.pid}/stat").read_text()
        stat = Stat.parse(line)
        assert stat is not None
        pid_file = tmp_path / "pids" / "ours"
        pid_file.parent.mkdir()
        pid_file.write_text(line.replace(f" {stat.start_ticks} ", f" {stat.start_ticks - 1} "))

        Processes(tmp_path).stop()

        assert stranger.poll() is None
        stranger.kill()


def test_a_program_that_ended_by_itself_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    processes.spawn("broken", ["sh", "-c", "echo no such flag >&2; exit 1"])
    broken = processes.stat("broken")
    assert broken is not None
    while broken.is_running:
        os.sched_yield()
    with pytest.raises(ClusterError, match=r"broken ended by itself[\s\S]*no such flag"):
        processes.require_running()
    processes.stop()


def test_a_slot_of_a_living_session_is_left_alone(other_session: tuple[subprocess.Popen[str], Processes]) -> None:
    session, programs = other_session
    slot = Slot.acquire()
    assert slot.folder.exists()
    assert slots.owners()[0] == session.pid
    assert programs.is_running("sleeper")
    slot.clear()


def test_a_slot_whose_session_was_killed_is_cleared_by_the_next(
    other_session: tuple[subprocess.Popen[str], Processes], state: Path
) -> None:
    session, programs = other_session
    sleeper = programs.stat("sleeper")
    assert sleeper is not None
    session.send_signal(signal.SIGKILL)
    session.wait()
    assert sleeper.is_running

    slot = Slot.acquire()

    assert slot.index == 0
    assert not sleeper.is_running
    slot.clear()
    assert not state.exists()


def test_a_detached_slot_is_cleared_only_on_request(state: Path) -> None:
    slot = Slot.acquire()
    slot.processes.spawn("sleeper", ["sleep", "600"])
    slot.detach()

    assert slots.clear_abandoned() == 0
    assert slot.processes.is_running("sleeper")
    assert slots.find_detached() == slot.folder
    assert slots.clear_abandoned(detached=True) == 1
    assert not slot.processes.is_running("sleeper")
    assert not state.exists()


def test_files_claimed_outside_the_folder_go_with_the_slot(state: Path, tmp_path: Path) -> None:
    slot, outside = Slot.acquire(), tmp_path / "socket"
    slot.claim([outside, tmp_path / "never-made"])
    outside.touch()
    slot.clear()
    assert not outside.exists()
