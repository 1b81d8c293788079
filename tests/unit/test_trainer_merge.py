"""A LoRA merged into its DiT: the same outputs, the same keys and types, in one file or in shards, and no other model's."""

import json
from pathlib import Path

import pytest
import torch
from diffsynth.core.loader.file import hash_model_file
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from rewardfl_api.cli import app
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.export import exported
from rewardfl_trainer.merge import Merged, merge
from rewardfl_trainer.models import Models, load_models
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import make_trainable
from tests.unit.datasets import parameters
from tests.unit.small_networks import random, small_dit, small_text_encoder, small_vae
from tests.unit.test_trainer_lora import LORA, stir, velocity
from tests.unit.test_trainer_model_files import write_family

CPU = torch.device("cpu")
SHARD_BYTES = 100_000


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of both DiTs, the text encoder and the VAE. The tokenizer is another file, tested with the tiny family."""
    monkeypatch.setattr("rewardfl_trainer.models.load_tokenizer", lambda path: path)
    (tmp_path / "models").mkdir()
    return write_family(tmp_path / "models")


def train(path: Path, dtype: torch.dtype = torch.float32, **changes: object) -> nn.Module:
    """Return a trained low-noise DiT, its LoRA written to `path`."""
    models = Models(small_dit(), small_dit(1).to(dtype), small_text_encoder(), small_vae(), tokenizer=None)  # type: ignore[arg-type]
    given = parameters(**{**LORA, **changes})
    trainable = make_trainable(models, given, Plan.of(given))
    dit = stir(models.network("dit2"))
    save_file(exported(trainable, given, partitioned=False)["lora"], path, metadata={"lora_base_model": "dit2"})
    return dit


@pytest.mark.parametrize("max_shard_bytes", [10**9, SHARD_BYTES])
def test_the_merged_model_is_loaded_and_predicts_what_the_trained_one_does(
    tmp_path: Path, family: list[str], max_shard_bytes: int
) -> None:
    dit = train(tmp_path / "lora.safetensors", lora_alpha=8.0)
    merged = merge(
        tmp_path / "lora.safetensors", family[1], tmp_path / "out" / "low.safetensors", max_shard_bytes=max_shard_bytes
    )
    assert (merged.layers, merged.trained_on) == (20, "dit2")
    given = parameters(
        model_paths=[family[0], ",".join(map(str, merged.files)), *family[2:]], min_timestep_boundary=0.9, dtype="fp32"
    )
    loaded = load_models(given, CPU).network("dit2")
    torch.testing.assert_close(velocity(loaded), velocity(dit), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(velocity(loaded), velocity(small_dit(1)), atol=1e-3)


def test_layers_without_a_lora_and_the_models_hash_stay_as_they_were(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors", lora_target_modules="q,ffn.2")
    whole = merge(tmp_path / "lora.safetensors", family[1], tmp_path / "whole.safetensors")
    shards = merge(tmp_path / "lora.safetensors", family[1], tmp_path / "low.safetensors", max_shard_bytes=SHARD_BYTES)
    before, after = load_file(family[1]), load_file(whole.files[0])
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"blocks.{block}.{layer}.weight" for block in (0, 1) for layer in ("self_attn.q", "cross_attn.q", "ffn.2")}
    assert len(shards.files) > 2
    for files in ([str(whole.files[0])], [str(path) for path in shards.files]):
        assert hash_model_file(files) == hash_model_file(family[1])


def test_shards_are_small_complete_and_listed_in_an_index(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors")
    merged = merge(tmp_path / "lora.safetensors", family[1], tmp_path / "low.safetensors", max_shard_bytes=SHARD_BYTES)
    count = len(merged.files)
    assert [path.name for path in merged.files] == [f"low-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    index = json.loads((tmp_path / "low.safetensors.index.json").read_text())
    shards = {path.name: load_file(path) for path in merged.files}
    assert index["weight_map"] == {key: name for name, tensors in shards.items() for key in tensors}
    sizes = {name: sum(tensor.nbytes for tensor in tensors.values()) for name, tensors in shards.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert max(sizes.values()) <= SHARD_BYTES
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*"))


def write_bf16(path: Path) -> dict[str, Tensor]:
    """Write a base as the hubs have it: bf16, the modulation in fp32."""
    tensors = {
        key: tensor if key.endswith("modulation") else tensor.bfloat16() for key, tensor in small_dit(1).state_dict().items()
    }
    save_file(tensors, path)
    return tensors


def test_each_tensor_keeps_its_type_and_a_bf16_weight_is_rounded_once(tmp_path: Path) -> None:
    base = write_bf16(tmp_path / "base.safetensors")
    train(tmp_path / "lora.safetensors", torch.bfloat16)
    lora = load_file(tmp_path / "lora.safetensors")
    merged = merge(tmp_path / "lora.safetensors", str(tmp_path / "base.safetensors"), tmp_path / "merged.safetensors")
    after = load_file(merged.files[0])
    assert {key: tensor.dtype for key, tensor in after.items()} == {key: tensor.dtype for key, tensor in base.items()}
    up, down = (lora[f"blocks.0.ffn.0.lora_{part}.default.weight"] for part in "BA")
    assert torch.equal(after["blocks.0.ffn.0.weight"], (base["blocks.0.ffn.0.weight"].float() + up @ down).bfloat16())


def test_a_merged_bf16_model_predicts_what_the_trained_one_does_within_bf16s_precision(tmp_path: Path) -> None:
    write_bf16(tmp_path / "base.safetensors")
    dit = train(tmp_path / "lora.safetensors", torch.bfloat16)
    for module in (dit.time_embedding, dit.time_projection):
        module.float()
    merged = merge(tmp_path / "lora.safetensors", str(tmp_path / "base.safetensors"), tmp_path / "merged.safetensors")
    network = small_dit(1)
    network.load_state_dict(load_file(merged.files[0]))
    expected = velocity(network)
    error = float((velocity(dit, torch.bfloat16).detach().float() - expected).norm() / expected.norm())
    untrained = float((velocity(small_dit(1)) - expected).norm() / expected.norm())
    assert error < 0.02 < untrained


def test_half_the_strength_is_half_the_change(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors")
    key, base = "blocks.1.self_attn.v.weight", load_file(family[1])
    full, half = (
        load_file(merge(tmp_path / "lora.safetensors", family[1], tmp_path / f"{scale}.safetensors", scale=scale).files[0])
        for scale in (1.0, 0.5)
    )
    torch.testing.assert_close(half[key] - base[key], (full[key] - base[key]) / 2)


def test_torch_files_and_comfyuis_names_of_the_base_are_kept(tmp_path: Path) -> None:
    named = {f"model.diffusion_model.{key}": tensor for key, tensor in small_dit(1).state_dict().items()}
    torch.save(named, tmp_path / "base.pth")
    train(tmp_path / "lora.safetensors")
    merged = merge(tmp_path / "lora.safetensors", str(tmp_path / "base.pth"), tmp_path / "merged.safetensors")
    assert merged.layers == 20
    assert load_file(merged.files[0]).keys() == named.keys()


def refusal(tmp_path: Path, base: str, output: str = "merged.safetensors", lora: str = "lora.safetensors") -> RewardFLError:
    with pytest.raises(RewardFLError) as caught:
        merge(tmp_path / lora, base, tmp_path / output)
    return caught.value


def test_a_lora_of_another_width_or_depth_is_refused_by_layer_and_leaves_nothing(tmp_path: Path, family: list[str]) -> None:
    pair = {"lora_A.default.weight": random(4, 5120), "lora_B.default.weight": random(5120, 4)}
    for layer, said in (
        ("blocks.0.self_attn.q", "[5120, 5120] in the LoRA, [48, 48] in the model"),
        ("blocks.39.ffn.0", "no layer"),
    ):
        save_file({f"{layer}.{part}": tensor for part, tensor in pair.items()}, tmp_path / "lora.safetensors")
        error = refusal(tmp_path, family[1])
        assert (error.reason, error.exit_code) == (Reason.MODEL_UNKNOWN, ExitCode.BAD_CONFIGURATION)
        assert layer in error.message
        assert said in error.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.safetensors", "models"]


def test_what_exists_is_not_overwritten_in_one_file_or_in_shards(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors")
    for name in ("merged.safetensors", "merged-00001-of-00003.safetensors", "merged.safetensors.index.json"):
        (tmp_path / name).write_text("mine")
        error = refusal(tmp_path, family[1])
        assert (error.reason, error.exit_code) == (Reason.BAD_USAGE, ExitCode.USAGE)
        assert f"{name}: exists" in error.message
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_what_is_missing_or_no_model_is_named(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors")
    error = refusal(tmp_path, str(tmp_path / "absent.safetensors"))
    assert error.exit_code == ExitCode.MISSING_INPUT
    assert error.message.startswith(f"base={tmp_path}/absent.safetensors: no such file")
    assert refusal(tmp_path, family[1], lora="absent.safetensors").exit_code == ExitCode.MISSING_INPUT
    assert refusal(tmp_path, family[1], output="merged.pth").exit_code == ExitCode.USAGE
    assert "trained on another model" in refusal(tmp_path, family[2]).message


def test_an_eight_bit_base_is_refused(tmp_path: Path) -> None:
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in small_dit(1).state_dict().items()}
    save_file(tensors, tmp_path / "base.safetensors")
    train(tmp_path / "lora.safetensors")
    error = refusal(tmp_path, str(tmp_path / "base.safetensors"))
    assert "float8_e4m3fn, to which nothing can be added" in error.message


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, family: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "lora.safetensors")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("rewardfl_trainer.merge.shutil.disk_usage", lambda _path: usage)
    error = refusal(tmp_path, family[1])
    assert (error.reason, error.exit_code) == (Reason.DISK_TOO_SMALL, ExitCode.IO_ERROR)
    assert "bytes are needed and 1000 are free" in error.message


def test_the_command_says_what_it_wrote_and_on_what_the_lora_was_trained(tmp_path: Path, family: list[str]) -> None:
    train(tmp_path / "lora.safetensors")
    command = ["merge", str(tmp_path / "lora.safetensors"), family[1], "-o", str(tmp_path / "merged.safetensors")]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 0
    assert answer.output.splitlines() == [
        f"wrote {tmp_path / 'merged.safetensors'}",
        "20 layers changed; the LoRA was trained on dit2, which the base has to be",
    ]
    again = CliRunner().invoke(app, command)
    assert again.exit_code == ExitCode.USAGE
    assert again.output.startswith("rewardfl merge: ")
    assert len(again.output.splitlines()) == 1


def test_a_merge_that_fails_midway_leaves_nothing(tmp_path: Path, family: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "lora.safetensors")

    def fail(*_arguments: object) -> Merged:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rewardfl_trainer.merge._changed", fail)
    command = ["merge", str(tmp_path / "lora.safetensors"), family[1], "-o", str(tmp_path / "out" / "merged.safetensors")]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == ExitCode.IO_ERROR
    assert "No space left" in answer.output
    assert list((tmp_path / "out").iterdir()) == []
