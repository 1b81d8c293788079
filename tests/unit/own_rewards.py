"""Rewards that are not the product's, on Python's path for a while."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = "my_rewards"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Inside, `my_rewards` is the one in `folder`; afterwards nothing of it is left for another test."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
