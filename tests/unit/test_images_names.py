"""What the images are called. Builds none."""

import pytest

from docker.build import full_name
from rewardfl_api import __version__

TEAM = "registry.example.com/team"


@pytest.mark.parametrize(("registry", "before"), [("", ""), (TEAM, f"{TEAM}/"), (f"{TEAM}/", f"{TEAM}/")])
def test_a_registry_stands_before_the_name_with_one_slash(registry: str, before: str) -> None:
    assert full_name("operator", registry) == f"{before}rewardfl-operator:{__version__}"
