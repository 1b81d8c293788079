"""The images that tests look into and run, each built once, with settings of a machine that must not be found in them."""

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from docker import build
from docker.build import Built
from docker.load import image_values, load
from docker.tools import Tool
from tests.cluster import LocalCluster

MARK = "rewardfl-only-while-building"
"""Stands in the certificate bundle and in pip's configuration that these builds are lent."""


@functools.cache
def tool() -> Tool:
    """What builds here."""
    return build.ready_tool("", build.LOCAL)


@contextmanager
def marked_machine() -> Iterator[None]:
    """This machine's certificate bundle and pip settings, with the mark in both."""
    with tempfile.TemporaryDirectory() as machine, pytest.MonkeyPatch.context() as patch:
        bundle = Path(machine) / "bundle.pem"
        bundle.write_text(f"{Path('/etc/ssl/certs/ca-certificates.crt').read_text()}\n# {MARK}\n")
        patch.setenv("PIP_CERT", str(bundle))
        patch.setenv("PIP_TRUSTED_HOST", f"{MARK}.example.com")
        yield


@functools.cache
def built(image: str) -> Built:
    """The image of what is checked out."""
    with marked_machine():
        return build.build(image, tool(), base=build.LOCAL)


def load_both(cluster: LocalCluster) -> dict[str, Any]:
    """Bring both onto the node; returns the chart's values with which pods run them."""
    for image in build.IMAGES:
        load(built(image), tool(), cluster)
    return image_values()
