"""Brings the images, built here, onto the local cluster's node. For the demo and the tests; a real node pulls from a registry."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rewardfl_api import __version__
from tests.cluster import LocalCluster
from tests.cluster.report import say

from . import build
from .build import Built
from .store import unpacked
from .tools import Tool


def built_images(cluster: LocalCluster) -> dict[str, Any]:
    """Build both images, with a base of this machine's making, and load them; returns the chart's values for them."""
    tool = build.ready_tool("", build.LOCAL)
    for image in build.IMAGES:
        built = build.build(image, tool, base=build.LOCAL)
        load(built, tool, cluster)
    return image_values()


def image_values() -> dict[str, Any]:
    """The chart's values with which pods run the images that are on the node."""
    image = {"tag": __version__, "pullPolicy": "Never"}
    return {"image": image, "trainer": {"image": image}}


def load(built: Built, tool: Tool, cluster: LocalCluster) -> None:
    """Share the image's files with the node: seconds, and no second 7 GB on the disk. Where that cannot be, pass it on packed."""
    say(f"{built.name} is built: {built.seconds:.0f} s; bringing it onto the node")
    found = unpacked(tool, built.name)
    if found is None or not cluster.link_image(found):
        pass_through_pipe(built.name, tool, cluster)
    say(f"{built.name} is on the node")


def pass_through_pipe(name: str, tool: Tool, cluster: LocalCluster) -> None:
    """Save the image and import it at once: as a file, the trainer's would be 7 GB once more on the disk."""
    with TemporaryDirectory(prefix="rewardfl-load-") as folder, ThreadPoolExecutor(1) as pool:
        pipe = Path(folder) / "image.tar"
        os.mkfifo(pipe)
        saving = pool.submit(_save, name, tool, pipe)
        try:
            cluster.load_image(pipe)
        finally:
            saving.result()


def _save(name: str, tool: Tool, pipe: Path) -> None:
    """Save into the pipe. Opening it for both makes sure that a reader ends even if the tool fails before it writes."""
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        tool.save(name, pipe)
    finally:
        os.close(descriptor)
