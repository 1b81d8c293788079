"""Which tests may run at the same time, and which begin first.

`make test` runs two groups at once: tests on a control plane mostly wait while the trainer's compute. The tests of a group share
what takes long to set up (a cluster, the tiny family, a finished run), so they stay in one process. A file is a group of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SHARED = ("distributed", "e2e", "gpu")
"""Folders whose tests share something of the whole session."""

NODE = "integration/test_local_cluster.py"
"""Starts nodes, as the end-to-end tests do: one at a time."""

IMAGES = "images"
"""Tests of the images start a node too."""

FIRST = ("distributed", "e2e", "integration", "chart", "gpu", "unit")
"""The long groups begin first, so that none is left over at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the groups in order."""
    items.sort(key=lambda item: _place(item.path.relative_to(HERE).parts[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups. (xdist's own marks for that have no effect with pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling  # not there where tests/gpu runs without a network

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return Groups(config, log)


def group_of(nodeid: str) -> str:
    """Return the group of a test."""
    path = nodeid.partition("::")[0].removeprefix("tests/")
    folder = path.partition("/")[0]
    if path == NODE or folder == IMAGES:
        return "e2e"
    return folder if folder in SHARED else path


def _place(folder: str) -> int:
    return FIRST.index(folder) if folder in FIRST else len(FIRST)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process as the only rank."""
    from torch import distributed  # seconds, which tests without it need not wait for

    store = distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
