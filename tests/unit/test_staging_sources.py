"""What a configuration names, and what becomes of it once it is staged. Nothing remote is touched."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from rewardfl_api.base import ApiModel
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.staging import localize
from rewardfl_trainer.staging.order import needed_first
from rewardfl_trainer.staging.plan import PlannedFile
from rewardfl_trainer.staging.remote import Remote, RemoteFile
from rewardfl_trainer.staging.sources import HUB_VARIABLE, Request, folder_requests, model_list_request, model_requests
from rewardfl_trainer.staging.staged import write_staged

LONGEST_PATH = "max_length=4096"
"""How the API declares a text that is a path."""

WRITTEN_TO = ("output", "cache_dir", "work_dir")


def configuration(tmp_path: Path, **training: Any) -> TrainerConfig:
    given = {
        "model_paths": ["/m/dit.safetensors"],
        "reward_model_path": "/m/antelopev2",
        "tokenizer_path": "/m/umt5",
        "trainable_models": "dit",
        **training,
    }
    return TrainerConfig.model_validate({"dataset": "/d", "output": "/o", "work_dir": str(tmp_path), "training": given})


def named(config: TrainerConfig, model_list: str | None = None) -> list[list[str]]:
    return [[request.text for request in model] for model in model_requests(config, model_list)]


def test_an_empty_tokenizer_path_means_the_official_one_on_the_hub(tmp_path: Path) -> None:
    tokenizer = folder_requests(configuration(tmp_path, tokenizer_path=""))[-1]

    assert tokenizer.parameter == "training.tokenizer_path"
    assert (tokenizer.source.scheme, tokenizer.source.location) == ("hf", "Wan-AI/Wan2.1-T2V-1.3B")
    assert tokenizer.source.path == "google/umt5-xxl/*"


def test_the_evaluation_dataset_is_staged_like_the_dataset_and_becomes_a_local_path(tmp_path: Path) -> None:
    config = configuration(tmp_path, eval_dataset="s3://bkt/held-out/")
    request = folder_requests(config)[-1]
    assert (request.parameter, request.kind) == ("training.eval_dataset", "dataset")

    write_staged(config, {"s3://bkt/held-out/": "/cache/held-out"})

    assert localize(config).training.eval_dataset == "/cache/held-out"
    assert localize(configuration(tmp_path)).training.eval_dataset is None


def path_fields(model: type[ApiModel]) -> list[str]:
    """The fields that hold paths, by the type that they are declared with."""
    return [name for name, field in model.model_fields.items() if LONGEST_PATH in str([field.metadata, field.annotation])]


def test_every_path_that_is_read_may_be_a_remote_source_and_is_staged(tmp_path: Path) -> None:
    read = [name for name in [*path_fields(TrainerConfig), *path_fields(TrainingParameters)] if name not in WRITTEN_TO]
    assert len(read) == 6, read
    given: dict[str, Any] = {name: f"s3://bkt/{name}/" for name in read}
    given |= {"model_paths": ["s3://bkt/model_paths/"], "model_id_with_origin_paths": "o/n:model_id_with_origin_paths/"}
    config = configuration(tmp_path, **{name: value for name, value in given.items() if name != "dataset"})
    config = config.copy_with(dataset=given["dataset"])

    requests = [*folder_requests(config), *(request for model in model_requests(config) for request in model)]
    local = {request.text: f"/local/{request.source.path}" for request in requests}
    write_staged(config, local)
    found = localize(config)

    assert sorted(request.source.path.rstrip("/") for request in requests) == sorted(read)
    assert "s3://" not in found.dump()
    assert "o/n" not in found.dump()


def planned(request: Request, key: str, size: int) -> PlannedFile:
    return PlannedFile(RemoteFile(request, key, size, "v"), cast(Remote, None), (key,))


def test_files_are_fetched_in_the_order_in_which_the_trainer_needs_them(tmp_path: Path) -> None:
    high, low = (
        "s3://bkt/high-1.safetensors, s3://bkt/high-2.safetensors",
        "s3://bkt/low-1.safetensors, s3://bkt/low-2.safetensors",
    )
    config = configuration(
        tmp_path,
        model_paths=[high, low, "s3://bkt/umt5.pth"],
        model_id_with_origin_paths="o/n:vae.pth",
        reward_model_path="s3://bkt/antelopev2/",
        tokenizer_path="s3://bkt/umt5/",
    ).copy_with(dataset="s3://bkt/faces/")
    sizes = {"high-1": 10, "high-2": 4, "low-1": 4, "low-2": 10, "umt5": 11, "vae": 1}
    models = [request for model in model_requests(config) for request in model]
    files = [planned(request, Path(request.source.path).stem, sizes[Path(request.source.path).stem]) for request in models]
    files += [planned(request, request.kind.value, 1000) for request in folder_requests(config)]

    assert [item.file.key for item in needed_first(files)] == [
        "tokenizer", "reward", "dataset", "vae", "umt5", "high-1", "high-2", "low-1", "low-2",
    ]  # fmt: skip


def test_shards_are_requests_of_their_own_within_one_model(tmp_path: Path) -> None:
    config = configuration(tmp_path, model_paths=["s3://bkt/1.safetensors, s3://bkt/2.safetensors", "s3://bkt/vae.pth"])

    assert named(config) == [["s3://bkt/1.safetensors", "s3://bkt/2.safetensors"], ["s3://bkt/vae.pth"]]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("s3://bkt/wan/paths.json", "s3://bkt/wan/vae/x.pth"),
        ("s3://bkt/paths.json", "s3://bkt/vae/x.pth"),
        ("hf://org/name@v1:wan/paths.json", "hf://org/name@v1:wan/vae/x.pth"),
        ("ms://org/name:paths.json", "ms://org/name:vae/x.pth"),
        ("/m/wan/paths.json", "/m/wan/vae/x.pth"),
    ],
)
def test_a_relative_path_in_a_model_list_is_relative_to_the_list(tmp_path: Path, where: str, expected: str) -> None:
    config = configuration(tmp_path, model_paths=[where])

    assert named(config, '["vae/x.pth"]') == [[expected]]


def test_a_model_list_may_be_an_object_name_shards_folders_and_whole_uris(tmp_path: Path) -> None:
    config = configuration(tmp_path, model_paths=["s3://bkt/wan/paths.json"])
    listed = {
        "high": ["a-1.safetensors", "../b/a-2.safetensors"],
        "low": "low/",
        "vae": "hf://org/name:vae.pth",
        "t5": "/local/t5.pth",
    }

    assert named(config, json.dumps(listed)) == [
        ["s3://bkt/wan/a-1.safetensors", "s3://bkt/b/a-2.safetensors"],
        ["s3://bkt/wan/low/"],
        ["hf://org/name:vae.pth"],
        ["/local/t5.pth"],
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '["a", 3]', "[[]]", '[""]', '["../../outside.pth"]'])
def test_a_model_list_that_is_none_is_refused_by_name(tmp_path: Path, content: str) -> None:
    config = configuration(tmp_path, model_paths=["s3://bkt/wan/paths.json"])

    with pytest.raises(RewardFLError) as caught:
        model_requests(config, content)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)
    assert "training.model_paths=s3://bkt/wan/paths.json" in caught.value.message


def test_hub_models_follow_the_listed_ones_in_order(tmp_path: Path) -> None:
    config = configuration(
        tmp_path, model_id_with_origin_paths="Wan-AI/Wan2.2-I2V-A14B:low_noise_model/*.safetensors,ms://o/n@v2:vae.pth"
    )

    assert named(config) == [
        ["/m/dit.safetensors"],
        ["hf://Wan-AI/Wan2.2-I2V-A14B:low_noise_model/*.safetensors"],
        ["ms://o/n@v2:vae.pth"],
    ]


def test_the_hub_is_chosen_by_the_variable_that_diffsynth_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(tmp_path, model_paths=None, model_id_with_origin_paths="o/n:vae.pth")
    monkeypatch.setenv(HUB_VARIABLE, "ModelScope")
    assert named(config) == [["ms://o/n:vae.pth"]]

    monkeypatch.setenv(HUB_VARIABLE, "elsewhere")
    with pytest.raises(RewardFLError, match="elsewhere"):
        model_requests(config)


def test_a_source_of_no_known_form_is_named_with_its_parameter(tmp_path: Path) -> None:
    with pytest.raises(RewardFLError, match=r"training\.reward_model_path: 'gs://bkt/x': unknown scheme") as caught:
        folder_requests(configuration(tmp_path, reward_model_path="gs://bkt/x"))

    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


def test_a_configuration_with_nothing_remote_stays_as_it_is(tmp_path: Path) -> None:
    config = configuration(tmp_path)

    assert localize(config) == config


def test_a_local_model_list_with_local_models_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "paths.json").write_text('["vae.pth"]')
    config = configuration(tmp_path, model_paths=[str(tmp_path / "paths.json")])

    assert model_list_request(config) is not None
    assert localize(config) == config


def test_every_source_is_replaced_by_the_path_that_it_was_staged_to(tmp_path: Path) -> None:
    (tmp_path / "paths.json").write_text('[["s3://bkt/1.safetensors", "s3://bkt/2.safetensors"], "vae.pth"]')
    config = configuration(
        tmp_path, model_paths=[str(tmp_path / "paths.json")], model_id_with_origin_paths="o/n:t5.pth", tokenizer_path=""
    )
    staged = {
        "s3://bkt/1.safetensors": "/c/1.safetensors",
        "s3://bkt/2.safetensors": "/c/2.safetensors",
        "hf://o/n:t5.pth": "/c/t5.pth",
        "hf://Wan-AI/Wan2.1-T2V-1.3B:google/umt5-xxl/*": "/c/umt5",
    }
    write_staged(config, staged)

    local = localize(config)

    assert local.training.model_paths == ["/c/1.safetensors,/c/2.safetensors", f"{tmp_path}/vae.pth", "/c/t5.pth"]
    assert local.training.model_id_with_origin_paths is None
    assert local.training.tokenizer_path == "/c/umt5"
    assert (local.dataset, local.training.reward_model_path) == ("/d", "/m/antelopev2")


def test_training_without_staging_says_what_to_run_first(tmp_path: Path) -> None:
    config = configuration(tmp_path, tokenizer_path="")
    with pytest.raises(RewardFLError, match=r"holds no staged\.json") as caught:
        localize(config)
    assert caught.value.exit_code == ExitCode.USAGE

    write_staged(config, {"s3://bkt/other": "/c/other"})
    with pytest.raises(RewardFLError, match="was not staged"):
        localize(config)
