"""The examples are valid, fit the GPUs that they name, need what their comments say, and each has a row in examples/README.md."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rewardfl_api.cli import app
from rewardfl_api.job import RewardFLJob
from rewardfl_api.quantities import bytes_of
from rewardfl_trainer.configuration import read
from rewardfl_trainer.estimate.fit import GPU_BYTES, needed_bytes
from rewardfl_trainer.estimate.networks import A14B
from rewardfl_trainer.estimate.result import Estimate, Estimator
from tests.unit.own_rewards import importable

GIGA = 1e9
FOLDER = Path(__file__).parents[2] / "examples"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
JOBS = sorted(path.name for path in FOLDER.glob("rewardfljob-*.yaml"))
ON_GPUS = [name for name in JOBS if name != "rewardfljob-tiny.yaml"]
CUSTOM = FOLDER / "custom_reward"
SAID = re.compile(
    r"^# estimate: (\d+\.\d) GB of each GPU, (\d+\.\d) GB of CPU memory a process, "
    r"(\d+\.\d) GB of models \((\d+\.\d) GB in fp32\)$",
    re.MULTILINE,
)
NAMED_GPU = re.compile(r"GPUs? of (?:#\s)?(\d+) GB|GPUs of\n# (\d+) GB")
ROW = re.compile(r"^\| \[(rewardfljob-[a-z-]+\.yaml)\]\(\1\) \|(.*)\|$", re.MULTILINE)
COLUMNS = ("for", "gpus", "estimated", "memory", "cache", "needs", "change")


def text_of(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def named_gpu(name: str) -> int:
    """The size of the GPUs that the example's first lines name, in GB."""
    found = NAMED_GPU.search(text_of(name))
    assert found is not None
    return int(found[1] or found[2])


def rows() -> dict[str, dict[str, str]]:
    return {name: dict(zip(COLUMNS, map(str.strip, cells.split("|")), strict=True)) for name, cells in ROW.findall(README)}


@cache
def estimator_of(training: str) -> Estimator:
    """One for all examples that train alike: what is counted does not depend on the number of GPUs."""
    return Estimator.of(read(FOLDER / training)[0].training)


@cache
def estimate_of(name: str) -> Estimate:
    config, world_size = read(FOLDER / name)
    alike = next(other for other in ON_GPUS if read(FOLDER / other)[0].training == config.training)
    return estimator_of(alike).estimate(config, world_size)


@pytest.fixture
def custom_reward() -> Iterator[None]:
    """The example's package is on Python's path, as it is in the image that the example names."""
    with importable(CUSTOM):
        yield


@pytest.mark.parametrize("name", JOBS)
def test_every_example_is_valid_and_nothing_is_said_against_it(name: str) -> None:
    result = CliRunner().invoke(app, ["validate", "--no-estimate", "-f", str(FOLDER / name)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{FOLDER / name}: RewardFLJob {yaml.safe_load(text_of(name))['metadata']['name']} is valid\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ON_GPUS)
@pytest.mark.usefixtures("custom_reward")
def test_an_example_needs_what_its_comment_says_and_fits_the_gpu_that_it_names(name: str) -> None:
    estimate = estimate_of(name)
    assert estimate.models == A14B
    found = (needed_bytes(estimate), estimate.host_bytes, estimate.staged_bytes, estimate.staged_bytes_fp32)
    (said,) = SAID.findall(text_of(name))
    assert [float(value) for value in said] == pytest.approx([value / GIGA for value in found], rel=0.01, abs=0.1)
    assert needed_bytes(estimate) <= GPU_BYTES[named_gpu(name)]


@pytest.mark.parametrize("name", ON_GPUS)
def test_the_limits_of_an_example_hold_the_cpu_memory_that_is_estimated(name: str) -> None:
    job = RewardFLJob.parse(yaml.safe_load(text_of(name)))
    ((_, host, _, fp32),) = SAID.findall(text_of(name))
    pod = yaml.safe_load(text_of(name))["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    kept = job.spec.gpus_per_node * float(host) * GIGA
    in_memory = sum(bytes_of(volume["emptyDir"]["sizeLimit"]) for volume in pod.get("volumes", []) if "emptyDir" in volume)
    assert bytes_of(trainer["resources"]["requests"]["memory"]) > kept
    assert bytes_of(trainer["resources"]["limits"]["memory"]) > kept + in_memory
    assert job.spec.cache.max_size is not None
    assert bytes_of(job.spec.cache.max_size) > float(fp32) * GIGA


def test_every_example_has_a_row_and_every_row_an_example() -> None:
    assert sorted(rows()) == JOBS


@pytest.mark.parametrize("name", ON_GPUS)
def test_a_row_says_what_the_example_says(name: str) -> None:
    row, job = rows()[name], RewardFLJob.parse(yaml.safe_load(text_of(name)))
    pod = yaml.safe_load(text_of(name))["spec"]["template"]["spec"]
    nodes = f"{job.spec.nodes} x " if job.spec.nodes > 1 else ""
    assert row["gpus"] == f"{nodes}{job.spec.gpus_per_node} of {named_gpu(name)} GB"
    assert row["estimated"] == f"{SAID.findall(text_of(name))[0][0]} GB"
    assert row["memory"].replace(" ", "") == f"{pod['containers'][0]['resources']['limits']['memory']}B"
    assert job.spec.cache.max_size is not None
    assert row["cache"].replace(" ", "").startswith(f"{job.spec.cache.max_size}B")
    secrets = [job.spec.storage.credentials_secret_name, *(secret["name"] for secret in pod.get("imagePullSecrets", []))]
    labels = yaml.safe_load(text_of(name))["metadata"].get("labels", {})
    named = [*secrets, job.spec.cache.persistent_volume_claim, *labels.values()]
    assert all(f"`{thing}`" in row["needs"] for thing in named)


def test_the_namespace_holds_what_the_examples_name() -> None:
    objects = {item["kind"]: item for item in yaml.safe_load_all(text_of("namespace.yaml"))}
    jobs = [RewardFLJob.parse(yaml.safe_load(text_of(name))) for name in ON_GPUS]
    assert {job.spec.storage.credentials_secret_name for job in jobs} == {objects["Secret"]["metadata"]["name"]}
    assert {job.spec.cache.persistent_volume_claim for job in jobs} == {objects["PersistentVolumeClaim"]["metadata"]["name"]}
    room = bytes_of(objects["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"])
    assert all(job.spec.cache.max_size is not None and bytes_of(job.spec.cache.max_size) < room for job in jobs)
