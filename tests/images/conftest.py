"""What builds, on a machine whose settings must not be found in what is built; and both images, to be looked into."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from docker.build import IMAGES
from docker.store import unpacked
from docker.tools import Tool
from tests.images import built
from tests.images.contents import Archive, Contents, Folders


@pytest.fixture(scope="session")
def tool() -> Tool:
    return built.tool()


@pytest.fixture(scope="session")
def lent() -> Iterator[None]:
    with built.marked_machine():
        yield


@pytest.fixture(scope="session")
def contents(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Contents]:
    """Both images: the small one packed, as other tools take it, the large one where it lies, if its place is known."""
    folder: Path = tmp_path_factory.mktemp("images")
    return {image: contents_of(image, tool, folder / f"{image}.tar") for image in IMAGES}


def contents_of(image: str, tool: Tool, archive: Path) -> Contents:
    name = built.built(image).name
    found = unpacked(tool, name) if image == "trainer" else None
    if found is not None:
        return Folders(found)
    tool.save(name, archive)
    return Archive(archive)
