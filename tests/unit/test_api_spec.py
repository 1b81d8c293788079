"""The spec, the names of things, and the forms in which they travel."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rewardfl_api import crd
from rewardfl_api.errors import ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_api.job import RewardFLJob
from rewardfl_api.reasons import EXPLANATIONS
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.uris import parse_source


def body(**spec: Any) -> dict[str, Any]:
    training = {"modelPaths": ["s3://m/wan22_paths.json"], "rewardModelPath": "s3://m/antelopev2/", "minTimestepBoundary": 0.9}
    base = {"dataset": "s3://data/faces/", "output": "s3://results/faces/", "training": training}
    return {
        "apiVersion": "rewardfl.io/v1alpha1",
        "kind": "RewardFLJob",
        "metadata": {"name": "faces", "namespace": "team"},
        "spec": {**base, **spec},
    }


def test_the_trainer_is_told_exactly_what_the_job_says() -> None:
    cache = {"hostPath": "/var/cache/models", "maxSize": "500Gi"}
    job = RewardFLJob.parse(body(gpusPerNode=0, deepspeed={"preset": "zero3"}, cache=cache))
    config = TrainerConfig.model_validate(yaml.safe_load(TrainerConfig.from_job(job).dump()))
    assert config.device == "cpu"
    assert config.training == job.spec.training
    assert config.cache_max_size == "500Gi"
    assert config.deepspeed["zero_optimization"]["stage"] == 3
    assert config.progress is not None
    assert (config.progress.namespace, config.progress.config_map) == ("team", "faces-progress")


def test_a_damaged_status_does_not_make_the_job_unreadable() -> None:
    assert RewardFLJob.parse({**body(), "status": {"phase": 17}}).metadata.name == "faces"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"processesPerNode": 2}, "processesPerNode=2: only for CPU training"),
        ({"cache": {"hostPath": "/c", "emptyDir": {}}}, "give one of host_path, empty_dir"),
        ({"cache": {"maxSize": "half"}}, "maxSize"),
        ({"deepspeed": {"preset": "zero2", "config": {}}}, "give preset (zero2) or config, not both"),
        ({"output": "/tmp/out"}, "output"),
        ({"storage": {"endpoint": "https://user:secret@s3"}}, "endpoint"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(spec: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RewardFLJob.parse(body(**spec))
    assert expected in str(caught.value)


def test_a_wrong_train_batch_size_is_refused_with_the_three_numbers() -> None:
    job = body(nodes=2, gpusPerNode=8)
    job["spec"]["training"]["trainBatchSize"] = 8
    with pytest.raises(ValidationError, match=r"perDeviceTrainBatchSize 1 \* gradientAccumulationSteps 1 \* world size 16 = 16"):
        RewardFLJob.parse(job)


@pytest.mark.parametrize(
    ("text", "scheme", "location", "path"),
    [
        ("s3://models/wan/high/", "s3", "models", "wan/high/"),
        ("hf://Wan-AI/Wan2.2-I2V-A14B@main:*.pth", "hf", "Wan-AI/Wan2.2-I2V-A14B", "*.pth"),
        ("ms://Wan-AI/Wan2.1-T2V-1.3B", "ms", "Wan-AI/Wan2.1-T2V-1.3B", ""),
        ("/data/models", "file", "", "/data/models"),
    ],
)
def test_sources_are_read_in_every_form(text: str, scheme: str, location: str, path: str) -> None:
    source = parse_source(text)
    assert (source.scheme, source.location, source.path) == (scheme, location, path)


@pytest.mark.parametrize(
    "text", ["s3://bucket/../other/key", "s3://bucket//etc/passwd", "s3://b\0cket/x", "ftp://host/x", "hf://noname"]
)
def test_sources_that_lead_outside_or_nowhere_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must not contain|NUL|unknown scheme|write hf|not a valid"):
        parse_source(text)


def test_an_error_survives_the_way_through_the_termination_message() -> None:
    error = RewardFLError(Reason.BAD_DATASET, "row 3: no such file", "Upload it.", ExitCode.BAD_DATA)
    message = TerminationMessage.parse(error.termination_message(rank=1, time=5.0).model_dump_json())
    assert message is not None
    assert (message.reason, message.exit_code, message.rank, message.hint) == (Reason.BAD_DATASET, 65, 1, "Upload it.")


@pytest.mark.parametrize("text", ["", "Killed", "{}", '{"reason": "Nonsense", "message": "", "exitCode": 1}', "[1]"])
def test_any_other_termination_message_is_none_of_ours(text: str) -> None:
    assert TerminationMessage.parse(text) is None


def test_every_reason_is_explained() -> None:
    assert set(EXPLANATIONS) == set(Reason)


def structural_nodes(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    nodes = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        nodes += structural_nodes(child, f"{path}.{name}")
    if "items" in schema:
        nodes += structural_nodes(schema["items"], f"{path}[]")
    return nodes


def test_the_crd_is_structural_bounded_and_small_enough_for_kubectl_apply() -> None:
    nodes = structural_nodes(crd.generate()["spec"]["versions"][0]["schema"]["openAPIV3Schema"])
    assert [path for path, node in nodes if "type" not in node or "$ref" in node or "title" in node] == []
    in_spec = [(path, node) for path, node in nodes if path.startswith((".spec", ".status"))]
    unbounded = [p for p, n in in_spec if n["type"] == "string" and not {"maxLength", "enum", "format"} & set(n)]
    unbounded += [p for p, n in in_spec if n["type"] == "array" and "maxItems" not in n]
    assert unbounded == []
    assert len(crd.render()) < 100_000
