"""What the tests of the operator share: a control plane with the chart installed, one for each file, and an operator in it."""

from collections.abc import Iterator

import pytest

from tests.integration.operator_harness import Installation, Operator


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart in a control plane of its own. At the end no operator has met anything that it did not expect."""
    with Installation.start(tmp_path_factory.mktemp("installation")) as installation:
        yield installation
    for operator in installation.operators:
        assert "Traceback" not in operator.text()


@pytest.fixture(scope="module")
def never_refused(installation: Installation) -> Iterator[None]:
    """At the end no operator has been refused anything: the chart's role suffices."""
    yield
    for operator in installation.operators:
        assert "403: " not in operator.text(), "the operator was refused something that the chart's role should allow"


@pytest.fixture(scope="module")
def operator(installation: Installation) -> Iterator[Operator]:
    """A running operator."""
    with installation.operator() as operator:
        yield operator
