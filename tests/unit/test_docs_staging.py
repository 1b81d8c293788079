"""What docs/staging.md shows is accepted, and does what it says."""

import re
import textwrap
from typing import Any

import yaml

from rewardfl_api.errors import Reason
from rewardfl_api.spec import RewardFLJobSpec
from rewardfl_operator.pods import pod_template
from rewardfl_operator.settings import OperatorSettings
from tests.cluster.paths import REPOSITORY
from tests.unit.operator_objects import job

TEXT = (REPOSITORY / "docs" / "staging.md").read_text(encoding="utf-8")


def example(first_line: str) -> Any:
    """Return the indented block that begins with a line, read as YAML."""
    found = re.search(rf"^(?P<indent> +){first_line}\n(?:(?P=indent).*\n)+", TEXT, re.MULTILINE)
    assert found is not None, first_line
    return yaml.safe_load(textwrap.dedent(found[0]))


def test_its_sources_are_accepted() -> None:
    spec = RewardFLJobSpec.model_validate({**example("spec:")["spec"], "output": "s3://results/face/"})
    assert len(spec.training.model_paths or []) == 4


def test_its_template_gives_both_containers_the_identity_under_the_restricted_policy() -> None:
    template = example("template:")["template"]
    spec = pod_template(job(template=template), OperatorSettings())["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        environment = {item["name"]: item.get("value") for item in container["env"]}
        mounted = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "aws-token"]
        assert environment["AWS_ROLE_ARN"].startswith("arn:aws:iam::")
        assert [environment["AWS_WEB_IDENTITY_TOKEN_FILE"].rpartition("/")[0]] == mounted
    assert "aws-token" in [volume["name"] for volume in spec["volumes"]]


def test_every_reason_that_it_names_exists() -> None:
    table = TEXT.partition("| reason | what it was")[2]
    named = {name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named
    assert named <= {reason.value for reason in Reason}
