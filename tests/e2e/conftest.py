"""One cluster, with the operator installed from its chart, for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from tests.cluster.stack import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    with Stack.start() as running:
        yield running
