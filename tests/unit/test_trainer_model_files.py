"""Finding and recognising model files: every form of a path, DiffSynth's own table, and what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.core.loader.file import hash_model_file
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import WanVideoVAE
from safetensors.torch import save_file
from torch import nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer import models as loading
from rewardfl_trainer.model_files import read_shapes, read_sidecar, read_tensors, resolve_model_paths
from rewardfl_trainer.models import load_models, shapes_digest
from tests.unit.datasets import parameters
from tests.unit.small_networks import DIT_ARGUMENTS, TEXT_ARGUMENTS, VAE_ARGUMENTS, small_dit, small_text_encoder, small_vae

CPU = torch.device("cpu")


def shards(folder: Path, count: int = 2) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"diffusion_pytorch_model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        save_file({f"weight_{number}": torch.zeros(2, number + 1)}, path)
    return paths


def test_every_form_of_a_path_means_the_same_files(tmp_path: Path) -> None:
    files = shards(tmp_path / "high")
    (tmp_path / "high" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    forms = [str(tmp_path / "high"), f"{tmp_path}/high/diffusion*.safetensors", f"{tmp_path}/high/*", ",".join(map(str, files))]
    for form in forms:
        assert resolve_model_paths([form]) == [files]


@pytest.mark.parametrize("wrap", [list, lambda entries: dict(zip(["high_noise_model", "vae"], entries, strict=True))])
def test_a_json_file_lists_paths_relative_to_its_own_folder(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    files = shards(tmp_path / "models" / "high")
    vae = tmp_path / "vae.pth"
    vae.write_bytes(b"")
    entries = [[f"models/high/{path.name}" for path in files], str(vae)]
    (tmp_path / "wan22_paths.json").write_text(json.dumps(wrap(entries)))
    assert resolve_model_paths([str(tmp_path / "wan22_paths.json")]) == [files, [vae]]


@pytest.mark.parametrize("form", ["missing.safetensors", "empty", "empty/*.safetensors", "missing.json"])
def test_what_is_missing_is_named_and_ends_with_66(tmp_path: Path, form: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RewardFLError, match=form.split("*", maxsplit=1)[0].rstrip("/")) as caught:
        resolve_model_paths([str(tmp_path / form)])
    assert (caught.value.reason, caught.value.exit_code) == (Reason.MODEL_NOT_FOUND, ExitCode.MISSING_INPUT)
    assert "training.model_paths" in caught.value.message


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards(tmp_path, count=3)[1].unlink()
    with pytest.raises(RewardFLError, match=r"model-00002-of-00003\.safetensors of 3 is missing"):
        resolve_model_paths([str(tmp_path)])


def test_a_sidecar_of_an_unknown_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    (tmp_path / "x.safetensors.config.json").write_text('{"model_name": "os.system", "extra_kwargs": {}}')
    with pytest.raises(RewardFLError, match=r"model_name='os\.system': must be one of wan_video_dit"):
        read_sidecar([path])


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("executed", "w"))


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_code_in_a_weights_file_is_refused_and_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Attack()))
    else:
        torch.save({"weight": Attack()}, path)
    with pytest.raises(RewardFLError, match=r"model\.pth: not a torch file of plain tensors"):
        dict(read_tensors([path]))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x08\0\0\0\0\0\0\0notjson!" * 3)
    with pytest.raises(RewardFLError, match=name) as caught:
        read_shapes([tmp_path / name])
    assert caught.value.reason == Reason.MODEL_UNKNOWN


def test_the_hash_is_diffsynths(tmp_path: Path) -> None:
    files = shards(tmp_path)
    torch.save({"model_state": {"a.weight": torch.zeros(3, 4)}}, tmp_path / "nested.pth")
    torch.save({"a": torch.zeros(2), "nested": {"b": torch.zeros(1, 2)}}, tmp_path / "deep.pth")
    assert shapes_digest(read_shapes(files)) == hash_model_file([str(path) for path in files])
    for name in ("nested.pth", "deep.pth"):
        assert shapes_digest(read_shapes([tmp_path / name])) == hash_model_file(str(tmp_path / name))


def official(build: Callable[[], nn.Module], prefix: str = "") -> str:
    """Hash the tensor names and shapes of a network at its true size, without memory for them."""
    with torch.device("meta"):
        state = build().state_dict()
    return shapes_digest({name.removeprefix(prefix): list(tensor.shape) for name, tensor in state.items()})


def test_the_true_a14b_family_is_recognised_by_diffsynths_table() -> None:
    a14b = next(entry for entry in MODEL_CONFIGS if entry["model_hash"] == "5b013604280dd715f8457c6ed6d6a626")
    assert official(lambda: WanModel(**a14b["extra_kwargs"])) == a14b["model_hash"]
    known = {entry["model_hash"]: entry["model_name"] for entry in MODEL_CONFIGS}
    assert known[official(WanTextEncoder)] == "wan_video_text_encoder"
    assert known[official(WanVideoVAE, "model.")] == "wan_video_vae"


def write_family(folder: Path) -> list[str]:
    networks = {
        "high.safetensors": ("wan_video_dit", DIT_ARGUMENTS, small_dit(0).state_dict()),
        "low.safetensors": ("wan_video_dit", DIT_ARGUMENTS, small_dit(1).state_dict()),
        "t5.pth": ("wan_video_text_encoder", TEXT_ARGUMENTS, small_text_encoder().state_dict()),
        "vae.pth": ("wan_video_vae", VAE_ARGUMENTS, small_vae().model.state_dict()),
    }
    for name, (model_name, arguments, state) in networks.items():
        (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
        sidecar = {"model_name": model_name, "extra_kwargs": arguments}
        (folder / f"{name}.config.json").write_text(json.dumps(sidecar))
    return [str(folder / name) for name in networks]


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # The tokenizer is another file of another kind, tested with the tiny family.
    monkeypatch.setattr(loading, "load_tokenizer", lambda path: path)
    return write_family(tmp_path)


def a14b(paths: list[str], **changes: object) -> Any:
    given = {"model_paths": paths, "trainable_models": "dit2", "lora_base_model": "dit2", "min_timestep_boundary": 0.9}
    return parameters(**{**given, "dtype": "fp32", **changes})


def test_a_family_is_loaded_frozen_with_its_exact_weights(family: list[str]) -> None:
    loaded = load_models(a14b(family), CPU)
    expected = {"dit": small_dit(0), "dit2": small_dit(1), "text_encoder": small_text_encoder(), "vae": small_vae()}
    for name, network in loaded.networks().items():
        assert not network.training
        state = expected[name].state_dict()
        assert network.state_dict().keys() == state.keys()
        for key, parameter in network.named_parameters():
            assert torch.equal(parameter, state[key])
            assert not parameter.requires_grad
    assert loaded.network("dit").freqs[0].device == CPU


def test_text_encoder_and_vae_may_come_first(family: list[str]) -> None:
    loaded = load_models(a14b([family[3], family[2], family[0], family[1]]), CPU)
    assert torch.equal(loaded.dit.head.head.weight, small_dit(0).head.head.weight)


def test_bf16_leaves_only_the_time_layers_in_fp32(family: list[str]) -> None:
    loaded = load_models(a14b(family, dtype="bf16"), CPU)
    kept = {name.split(".")[0] for name, value in loaded.dit.named_parameters() if value.dtype == torch.float32}
    assert kept == {"time_embedding", "time_projection"}
    assert {value.dtype for value in loaded.vae.parameters()} == {torch.bfloat16}


def test_a_single_dit_does_without_the_low_noise_model(family: list[str]) -> None:
    single = parameters(model_paths=[family[0], *family[2:]], dtype="fp32")
    assert load_models(single, CPU).dit2 is None


@pytest.mark.parametrize(
    ("left_out", "message"), [(1, "1 DiT found, the timestep boundaries ask for 2"), (2, "text encoder found"), (3, "VAE found")]
)
def test_a_missing_part_of_the_family_is_named(family: list[str], left_out: int, message: str) -> None:
    del family[left_out]
    with pytest.raises(RewardFLError, match=message) as caught:
        load_models(a14b(family), CPU)
    assert caught.value.reason == Reason.MODEL_NOT_FOUND


def test_a_file_of_another_model_is_unknown_and_ends_with_78(tmp_path: Path, family: list[str]) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(RewardFLError, match=r"other\.safetensors: not a model that DiffSynth knows") as caught:
        load_models(a14b([str(tmp_path / "other.safetensors"), *family[1:]]), CPU)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.MODEL_UNKNOWN, ExitCode.BAD_CONFIGURATION)


def test_weights_that_do_not_fit_their_sidecar_are_named(tmp_path: Path, family: list[str]) -> None:
    sidecar = {"model_name": "wan_video_dit", "extra_kwargs": {**DIT_ARGUMENTS, "dim": 64}}
    (tmp_path / "low.safetensors.config.json").write_text(json.dumps(sidecar))
    with pytest.raises(RewardFLError, match=r"low\.safetensors: does not fit a wan_video_dit: .*size mismatch"):
        load_models(a14b(family), CPU)
