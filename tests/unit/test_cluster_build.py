"""The cache of the local cluster's programs, and the settings that people may give it."""

from pathlib import Path

import pytest

from tests.cluster import build, network
from tests.cluster.build import Component
from tests.cluster.report import ClusterError


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Component:
    """A component of two programs whose cache and source are the test's own."""
    monkeypatch.setattr(build, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(build, "PACKAGE", tmp_path / "source")
    (tmp_path / "source" / "thing").mkdir(parents=True)
    (tmp_path / "source" / "thing" / "go.mod").write_text("module thing\n")
    return Component("thing", "1.0", ("example.org/cmd/one", "example.org/cmd/two"))


def _put(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)


def test_a_cache_folder_that_lacks_a_program_is_not_taken_for_whole(component: Component) -> None:
    _put(component.folder / "one")
    assert not component.is_built
    with pytest.raises(ClusterError, match="two is not built: run"):
        component.program("two")
    _put(component.folder / "two")
    assert component.program("two") == str(component.folder / "two")


def test_another_go_sum_means_another_cache_folder(component: Component) -> None:
    before = component.folder
    (component.module / "go.sum").write_text("example.org v1.0.0 h1:abc=\n")
    assert component.folder != before


def test_each_slot_has_a_subnet_of_its_own() -> None:
    subnets = {network.addresses(index).subnet for index in range(256)}
    assert len(subnets) == 256
    assert not any(subnet.overlaps(network.SERVICES) for subnet in subnets)


@pytest.mark.parametrize("value", ["10.0.0.0/8", "10.96.0.0/16", "192.168.1.0/24", "nonsense"])
def test_a_network_that_cannot_work_is_refused_with_its_name_and_value(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARDFL_CLUSTER_NETWORK", value)
    with pytest.raises(ClusterError, match=f"REWARDFL_CLUSTER_NETWORK={value}: .*/16"):
        network.addresses(0)
