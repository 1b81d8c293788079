"""A build that is killed in the middle leaves nothing that a later one stumbles over, or that fills the disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docker import base
from docker.tools import Tool
from tests.cluster.paths import REPOSITORY, cache_root
from tests.cluster.report import run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

BUILD = """
import sys
from pathlib import Path
from docker import workplace
from docker.tools import Recipe, Tool
tool, folder, name = Tool("buildah"), Path(sys.argv[1]), sys.argv[2]
with workplace.enter(tool) as place:
    (place.settings / "pip.conf").write_text("[global]")
    tool.build(Recipe(folder / "Dockerfile", folder, (name,)), place.temporary, place.lock)
"""
NAME = "localhost/rewardfl-interrupted:1"
ENDLESS = ["sleep", "86399"]
PLACE = cache_root() / "images" / "build"


@pytest.fixture
def context(tool: Tool, tmp_path: Path) -> Iterator[Path]:
    """The folder of a Dockerfile with two stages, whose last step never ends."""
    image = base.ensure(tool)
    steps = [
        f"FROM {image} AS one",
        "RUN true",
        f"FROM {image}",
        "COPY --from=one /etc/passwd /copied",
        f"RUN {' '.join(ENDLESS)}",
    ]
    (tmp_path / "Dockerfile").write_text("\n".join(steps))
    yield tmp_path
    if tool.has(NAME):
        run(["buildah", "rmi", NAME])


def build(context: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", BUILD, str(context), NAME], cwd=REPOSITORY, start_new_session=True)


def sleeping() -> list[int]:
    """The processes of the step that never ends."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_text().split("\0")[:-1] == ENDLESS:
                found.append(int(entry.name))
        except OSError:  # it has ended in between
            continue
    return found


def overlays() -> set[str]:
    return {
        line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4].endswith("/merged")
    }


def test_what_a_killed_build_left_is_cleared_by_the_next_one(tool: Tool, context: Path) -> None:
    assert tool.name == "buildah"
    containers, mounted = tool.containers(), overlays()
    with build(context) as killed:
        wait_until(lambda: sleeping() != [], "the endless step runs", timeout_seconds=300)
        os.killpg(killed.pid, signal.SIGKILL)
    wait_until(lambda: not sleeping(), "the endless step is gone", timeout_seconds=30)
    assert tool.containers() > containers, "there is something to clear"
    assert overlays() > mounted
    assert (PLACE / "settings" / "pip.conf").is_file()

    (context / "Dockerfile").write_text((context / "Dockerfile").read_text().replace(" ".join(ENDLESS), "true"))
    with build(context) as second:
        assert second.wait(300) == 0

    assert tool.has(NAME)
    assert (tool.containers(), overlays()) == (containers, mounted)
    assert not PLACE.exists()
