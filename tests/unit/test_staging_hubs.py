"""Staging from the model hubs, against a small server that answers as they do."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.s3 import ATTEMPTS_VARIABLE
from rewardfl_trainer.staging import localize
from rewardfl_trainer.staging.meter import Meter
from rewardfl_trainer.staging.plan import REWARD_MODELS
from rewardfl_trainer.staging.sources import HUB_VARIABLE
from rewardfl_trainer.staging.stage import stage
from tests.unit.hub_standin import HubStandIn, hub_stand_in

BIG = "low_noise_model/diffusion_pytorch_model.safetensors"
BIG_BYTES = 17 * 2**20
TOKENIZER = ("google/umt5-xxl/tokenizer.json", "google/umt5-xxl/tokenizer_config.json")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    files = {
        BIG: random.Random(1).randbytes(BIG_BYTES),
        "low_noise_model/config.json": b"{}",
        "high_noise_model/model ü.safetensors": b"x" * 5000,
        "vae.pth": b"small enough to be a git blob",
        **{name: name.encode() for name in TOKENIZER},
    }
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "2")
    with hub_stand_in(files) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.endpoint)
        yield running


def configuration(tmp_path: Path, **training: Any) -> TrainerConfig:
    (tmp_path / "local").mkdir(exist_ok=True)
    local = str(tmp_path / "local")
    given = {"reward_model_path": local, "tokenizer_path": local, "trainable_models": "dit", **training}
    given.setdefault("model_paths", [local])
    where = {"dataset": local, "output": local, "cache_dir": str(tmp_path / "cache"), "work_dir": str(tmp_path / "work")}
    return TrainerConfig.model_validate({**where, "training": given})


def failure_of(config: TrainerConfig) -> RewardFLError:
    with pytest.raises(RewardFLError) as caught:
        stage(config)
    return caught.value


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_only_the_files_that_are_named_are_fetched_and_they_are_right(tmp_path: Path, hub: HubStandIn, scheme: str) -> None:
    sources = [f"{scheme}://org/name@v1:low_noise_model/*.safetensors", f"{scheme}://org/name@v1:vae.pth"]
    config = configuration(tmp_path, model_paths=sources)

    stage(config)

    assert localize(config).training.model_paths is not None
    low, vae = (Path(path) for path in localize(config).training.model_paths or [])
    assert low.read_bytes() == hub.files[BIG]
    assert vae.read_bytes() == hub.files["vae.pth"]
    assert set(hub.contents()) == {BIG, "vae.pth"}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_second_start_reads_no_content_from_the_hub(tmp_path: Path, hub: HubStandIn, scheme: str) -> None:
    config = configuration(tmp_path, model_paths=[f"{scheme}://org/name:high_noise_model/", f"{scheme}://org/name:vae.pth"])
    stage(config)
    hub.seen.clear()

    stage(config)

    assert hub.seen
    assert hub.contents() == []


def test_what_one_hub_has_brought_is_not_fetched_from_the_other(tmp_path: Path, hub: HubStandIn) -> None:
    stage(configuration(tmp_path, model_paths=[f"hf://org/name:{BIG}"]))
    assert hub.contents()
    hub.seen.clear()

    local = stage(configuration(tmp_path, model_paths=[f"ms://org/name:{BIG}"]))

    assert hub.contents() == []
    assert Path(local[f"ms://org/name:{BIG}"]).read_bytes() == hub.files[BIG]


@pytest.mark.parametrize(("hub_name", "scheme"), [("huggingface", "hf"), ("modelscope", "ms")])
def test_models_by_id_and_pattern_come_from_the_chosen_hub(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, hub_name: str, scheme: str
) -> None:
    monkeypatch.setenv(HUB_VARIABLE, hub_name)
    config = configuration(tmp_path, model_id_with_origin_paths="org/name:low_noise_model/*.safetensors,org/name:vae.pth")

    stage(config)

    paths = localize(config).training.model_paths or []
    assert [Path(path).name for path in paths[1:]] == [Path(BIG).name, "vae.pth"]
    assert f"/{scheme}/" in paths[1]


FACES = {"metadata.csv": b"video,prompt", **{f"videos/{number} \u00fc.mp4": b"v%d" % number for number in range(205)}}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_dataset_comes_from_a_dataset_repository_however_many_files_it_has(
    tmp_path: Path, hub: HubStandIn, scheme: str
) -> None:
    hub.dataset = FACES
    config = configuration(tmp_path, eval_dataset=f"{scheme}://org/faces")

    stage(config)

    folder = Path(localize(config).training.eval_dataset or "")
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == FACES


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_a_dataset_may_lie_in_a_model_repository(tmp_path: Path, hub: HubStandIn, scheme: str) -> None:
    hub.files["faces/metadata.csv"] = b"video,prompt"
    config = configuration(tmp_path).copy_with(dataset=f"{scheme}://org/name:faces/")

    stage(config)

    assert (Path(localize(config).dataset) / "metadata.csv").read_bytes() == b"video,prompt"


@pytest.mark.parametrize(
    ("source", "named"),
    [("hf://org/faces@v1", "no revision 'v1'"), ("hf://org/none", "no such repository"), ("ms://org/none", "no such repository")],
)
def test_a_dataset_that_the_hub_does_not_have_is_named(tmp_path: Path, hub: HubStandIn, source: str, named: str) -> None:
    hub.dataset = FACES

    error = failure_of(configuration(tmp_path).copy_with(dataset=source))

    assert (error.reason, error.exit_code) == (Reason.OBJECT_NOT_FOUND, ExitCode.MISSING_INPUT)
    assert f"dataset={source}" in error.message
    assert named in error.message


def test_an_option_of_a_reward_whose_file_is_missing_is_named(tmp_path: Path, hub: HubStandIn) -> None:
    rewards = [{"name": "mine.rewards:Taste", "options": {"network": "hf://org/name:none.onnx"}}]

    error = failure_of(configuration(tmp_path, rewards=rewards))

    assert (error.reason, error.exit_code) == (Reason.OBJECT_NOT_FOUND, ExitCode.MISSING_INPUT)
    assert "training.rewards[0].options.network=hf://org/name:none.onnx" in error.message


def test_every_parameter_may_come_from_a_hub(tmp_path: Path, hub: HubStandIn) -> None:
    hub.dataset = FACES
    hub.files["wan/paths.json"] = b'{"high": "../high_noise_model/", "low": "ms://org/name@v1:low_noise_model/*.safetensors"}'
    for name in REWARD_MODELS:
        hub.files[f"antelopev2/{name}"] = name.encode()
    config = configuration(
        tmp_path,
        model_paths=["hf://org/name:wan/paths.json"],
        model_id_with_origin_paths="org/name:vae.pth",
        reward_model_path="ms://org/name:antelopev2/",
        tokenizer_path="hf://org/name@v1:google/umt5-xxl/*",
        eval_dataset="ms://org/faces",
        rewards=[
            {"name": "face_identity"},
            {"name": "mine.rewards:Taste", "options": {"network": "hf://org/name:vae.pth", "limit": 3, "note": "a://b"}},
            {"name": "mine.rewards:Words", "options": {"folder": "ms://org/name@v1:google/umt5-xxl"}},
        ],
    ).copy_with(dataset="hf://org/faces")

    meter = Meter()
    stage(config, meter=meter)

    told = [file.name for file in meter.snapshot().files]
    assert told.index("antelopev2/glintr100.onnx") < told.index("vae.pth") < told.index("high_noise_model/model ü.safetensors")
    local = localize(config)
    assert [Path(path).name for path in local.training.model_paths or []] == ["model ü.safetensors", Path(BIG).name, "vae.pth"]
    assert all(Path(path).is_file() for path in local.training.model_paths or [])
    assert sorted(path.name for path in Path(local.training.reward_model_path).iterdir()) == sorted(REWARD_MODELS)
    assert (Path(local.training.tokenizer_path) / "tokenizer.json").is_file()
    _, taste, words = (spec.options or {} for spec in local.training.rewards or [])
    assert (Path(taste["network"]).read_bytes(), taste["limit"], taste["note"]) == (hub.files["vae.pth"], 3, "a://b")
    assert sorted(path.name for path in Path(words["folder"]).iterdir()) == [Path(name).name for name in TOKENIZER]
    assert local.dataset != local.training.eval_dataset
    for folder in (local.dataset, local.training.eval_dataset or ""):
        assert (Path(folder) / "metadata.csv").is_file()


def test_a_folder_of_a_repository_keeps_its_form(tmp_path: Path, hub: HubStandIn) -> None:
    config = configuration(tmp_path, tokenizer_path="hf://org/name:google/umt5-xxl/*")

    stage(config)

    folder = Path(localize(config).training.tokenizer_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {Path(name).name: name.encode() for name in TOKENIZER}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
@pytest.mark.parametrize("name", [BIG, "vae.pth"])
def test_content_that_does_not_match_the_hubs_checksum_is_refused(
    tmp_path: Path, hub: HubStandIn, scheme: str, name: str
) -> None:
    hub.damaged.add(name)

    error = failure_of(configuration(tmp_path, model_paths=[f"{scheme}://org/name:{name}"]))

    assert (error.reason, error.exit_code) == (Reason.STAGED_FILE_CORRUPT, ExitCode.IO_ERROR)


def test_a_server_that_ignores_ranges_still_gives_the_right_content(tmp_path: Path, hub: HubStandIn) -> None:
    hub.honours_ranges = False

    local = stage(configuration(tmp_path, model_paths=[f"hf://org/name:{BIG}"]))

    assert Path(local[f"hf://org/name:{BIG}"]).read_bytes() == hub.files[BIG]


@pytest.mark.parametrize(("scheme", "variable"), [("hf", "HF_TOKEN"), ("ms", "MODELSCOPE_API_TOKEN")])
def test_the_token_goes_to_the_hub_and_not_to_the_host_that_it_redirects_to(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "a-token-of-the-hub")

    stage(configuration(tmp_path, model_paths=[f"{scheme}://org/name:vae.pth"]))

    for path, headers in hub.seen:
        assert (headers.get("authorization") == "Bearer a-token-of-the-hub") is ("/cdn/" not in path), path


@pytest.mark.parametrize(
    ("source", "reason", "code", "named"),
    [
        ("hf://org/other:vae.pth", Reason.MODEL_NOT_FOUND, 66, "no such repository"),
        ("ms://org/other:vae.pth", Reason.MODEL_NOT_FOUND, 66, "no such repository"),
        ("hf://org/name@v9:vae.pth", Reason.MODEL_NOT_FOUND, 66, "no revision 'v9'"),
        ("ms://org/name@v9:vae.pth", Reason.MODEL_NOT_FOUND, 66, "revision"),
        ("hf://org/name:no.pth", Reason.OBJECT_NOT_FOUND, 66, "neither a file nor a folder"),
        ("ms://org/name:no/*.pth", Reason.OBJECT_NOT_FOUND, 66, "no weights match"),
    ],
)
def test_what_the_hub_does_not_have_is_named(
    tmp_path: Path, hub: HubStandIn, source: str, reason: Reason, code: int, named: str
) -> None:
    error = failure_of(configuration(tmp_path, model_paths=[source]))

    assert (error.reason, error.exit_code) == (reason, code)
    assert f"training.model_paths[0]={source}" in error.message
    assert named in error.message


@pytest.mark.parametrize(("scheme", "variable"), [("hf", "HF_TOKEN"), ("ms", "MODELSCOPE_API_TOKEN")])
def test_a_gated_repository_says_which_token_to_set(tmp_path: Path, hub: HubStandIn, scheme: str, variable: str) -> None:
    hub.gated = True

    error = failure_of(configuration(tmp_path, model_paths=[f"{scheme}://org/name:vae.pth"]))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_ACCESS_DENIED, ExitCode.BAD_CONFIGURATION)
    assert variable in error.hint


@pytest.mark.parametrize(("scheme", "variable"), [("hf", "HF_ENDPOINT"), ("ms", "MODELSCOPE_ENDPOINT")])
def test_a_hub_that_cannot_be_reached_says_what_to_do_instead(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch, scheme: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")

    error = failure_of(configuration(tmp_path, model_paths=[f"{scheme}://org/name:vae.pth"]))

    assert (error.reason, error.exit_code) == (Reason.HUB_UNAVAILABLE, ExitCode.UNAVAILABLE)
    assert "training.model_paths" in error.hint


def test_a_tokenizer_that_cannot_be_fetched_says_what_to_set(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")

    error = failure_of(configuration(tmp_path, tokenizer_path=""))

    assert error.reason is Reason.HUB_UNAVAILABLE
    assert error.hint.startswith("Set training.tokenizer_path")


def test_a_hub_endpoint_on_a_link_local_address_is_refused(
    tmp_path: Path, hub: HubStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://169.254.169.254")

    assert "link-local" in failure_of(configuration(tmp_path, tokenizer_path="")).message


def test_offline_mode_is_said_to_be_on(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(configuration(tmp_path, tokenizer_path="").dump())
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TERMINATION_LOG": str(tmp_path / "log")}

    done = subprocess.run(
        [sys.executable, "-m", "rewardfl_trainer.staging", "--config", str(file)], env=environment, timeout=120, check=False
    )

    message = TerminationMessage.parse((tmp_path / "log").read_text())
    assert message is not None
    assert (done.returncode, message.reason) == (78, Reason.HUB_UNAVAILABLE)
    assert "HF_HUB_OFFLINE" in message.message
    assert "training.tokenizer_path" in message.hint
