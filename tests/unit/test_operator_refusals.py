"""A refused resource is told about in the user's own words: field, value, remedy. The operator's own settings as well."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rewardfl_api.job import RewardFLJob
from rewardfl_operator import refusals
from rewardfl_operator.settings import OperatorSettings
from rewardfl_operator.store import JobStore
from tests.unit.operator_objects import body


def rendered(**spec: Any) -> str:
    with pytest.raises(ValidationError) as error:
        RewardFLJob.parse(body(**spec))
    return refusals.render(error.value)


def test_a_bad_value_is_named_with_its_field_as_it_is_written_in_yaml() -> None:
    assert rendered(training={"learningRate": -1}) == "training.learningRate=-1: Input should be greater than or equal to 0"
    assert rendered(runPolicy={"backoffLimit": "many"}).startswith("runPolicy.backoffLimit=many: ")


def test_a_missing_field_is_named() -> None:
    assert rendered(dataset=None).startswith("dataset=None: ")
    assert rendered(trainin={}).startswith("trainin={}: ")


def test_a_rule_across_fields_speaks_for_itself() -> None:
    text = rendered(training={"trainBatchSize": 3})

    assert text.startswith("training.trainBatchSize=3: must equal perDeviceTrainBatchSize 1")
    assert "world size 2 = 2" in text


def test_many_errors_are_cut_short_and_counted() -> None:
    text = rendered(**{f"unknown{number}": 1 for number in range(15)})

    assert text.count(": ") == refusals.MAX_ERRORS
    assert text.endswith("; and 5 more")


def test_long_values_are_cut_short() -> None:
    assert len(rendered(dataset="x" * 5000)) < 500


def test_metadata_is_known_of_a_resource_that_cannot_be_read() -> None:
    stub = refusals.stub({**body(), "spec": {"nonsense": True}})

    assert (stub.metadata.name, stub.metadata.namespace, stub.metadata.generation) == ("face", "team", 3)


def test_settings_come_from_the_file_and_else_are_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("trainer: {image: 'mine:1', gpuResourceName: amd.com/gpu}\nwatchNamespaces: [a]\n", encoding="utf-8")

    settings = OperatorSettings.load(file)

    assert (settings.trainer.image, settings.trainer.gpu_resource_name) == ("mine:1", "amd.com/gpu")
    assert settings.watch_namespaces == ["a"]
    assert not settings.pod_policy.allow_privileged
    assert OperatorSettings.load(None) == OperatorSettings()


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("podPolicy: {allowPriviliged: true}\n", encoding="utf-8")

    with pytest.raises(ValidationError, match="allowPriviliged"):
        OperatorSettings.load(file)


def test_the_store_keeps_the_newest_version_whoever_brings_it() -> None:
    store, key = JobStore(), ("team", "face")

    def version(number: int, uid: str = "a") -> dict[str, Any]:
        return {"metadata": {"name": "face", "namespace": "team", "uid": uid, "resourceVersion": str(number)}}

    assert store.put(version(9))
    assert not store.put(version(7))
    assert store.put(version(10))
    store.drop(key, uid="another")
    assert store.get(key) == version(10)
    store.drop(key, uid="a")
    assert store.get(key) is None
    assert store.put(version(3, uid="b"))
