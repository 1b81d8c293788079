"""One cluster that runs the product's own images, and one run of the demo in it, for all end-to-end tests.

The images are built of what is checked out. Nothing of this machine is mounted into a pod, and the namespaces refuse what is not
restricted.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from docker.load import image_values
from examples.current_cluster import ACCESS_KEY, ENDPOINT, SECRET_KEY, VALUES
from tests.cluster import LocalCluster
from tests.cluster.build import HELM, KUBERNETES
from tests.cluster.stack import Stack
from tests.e2e.demo_run import DemoRun
from tests.images.built import load_both

TIMEOUT_SECONDS = 2400
"""Of each test here, since any of them may be the one that builds what all need."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with Stack.start(load_both) as running:
        yield running


@pytest.fixture(scope="session")
def context(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user whose kubectl, helm, context and S3 credentials are set up."""
    assert isinstance(stack.cluster, LocalCluster)
    folder: Path = tmp_path_factory.mktemp("context")
    for name, program in (("kubectl", KUBERNETES.program("kubectl")), ("helm", HELM.program("helm"))):
        (folder / name).symlink_to(program)
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(image_values()), encoding="utf-8")
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "KUBECONFIG": str(stack.cluster.kubeconfig),
        ENDPOINT: stack.storage.endpoint,
        ACCESS_KEY: stack.storage.access_key,
        SECRET_KEY: stack.storage.secret_key,
        VALUES: str(values),
    }


@pytest.fixture(scope="session")
def run(stack: Stack, context: dict[str, str]) -> DemoRun:
    return DemoRun(stack, context)
