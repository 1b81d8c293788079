"""Images for the tests, each built once, with settings of a machine that must not be found in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from docker import build
from docker.build import Built
from docker.tools import Tool
from tests.images.archive import Archive

MARK = "rewardfl-only-while-building"
"""Stands in the certificate bundle and in pip's configuration that the test's builds are lent."""


@pytest.fixture(scope="session")
def tool() -> Tool:
    return build.ready_tool("", build.LOCAL)


@pytest.fixture(scope="session")
def lent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This machine's certificate bundle and pip settings, with a mark in both."""
    bundle: Path = tmp_path_factory.mktemp("machine") / "bundle.pem"
    bundle.write_text(f"{Path('/etc/ssl/certs/ca-certificates.crt').read_text()}\n# {MARK}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CERT", str(bundle))
        patch.setenv("PIP_TRUSTED_HOST", f"{MARK}.example.com")
        yield


@pytest.fixture(scope="session")
def operator_image(tool: Tool, lent: None) -> Built:
    return build.build("operator", tool, base=build.LOCAL)


@pytest.fixture(scope="session")
def operator_archive(tool: Tool, operator_image: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("images") / "operator.tar"
    tool.save(operator_image.name, path)
    return path


@pytest.fixture(scope="session")
def operator(operator_archive: Path) -> Archive:
    return Archive(operator_archive)
