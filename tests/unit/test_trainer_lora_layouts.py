"""A trained LoRA in each library's layout: read by that library's own loader, it does what our adapter does.

ComfyUI is no package. Its layout is held to the rule of its loader (comfy/lora.py: a key is `diffusion_model.` and the layer's
name; comfy/weight_adapter/lora.py: weight += alpha / rank * up @ down), and read by the loaders of DiffSynth and diffusers, which
know it as well.
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsynth.configs import MODEL_CONFIGS
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.pipelines.wan_video import WanVideoPipeline
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from rewardfl_api.cli import app
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import EXPORT_FORMATS, ExportFormat
from rewardfl_trainer.export import exported, in_layouts
from rewardfl_trainer.lora_files import convert_file, load_lora
from rewardfl_trainer.lora_layouts import LowRank, diffusers_layer, read_lora, to_layout, wan_layer
from rewardfl_trainer.models import Models
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import make_trainable
from tests.unit.datasets import parameters
from tests.unit.small_networks import DIT_ARGUMENTS, random, small_dit, small_text_encoder, small_vae
from tests.unit.test_trainer_lora import LORA, stir, velocity

ALL_LAYERS = "q,k,v,o,ffn.0,ffn.2,time_embedding.0,time_embedding.2,text_embedding.0,text_embedding.2,time_projection.1,head.head"


def trained(alpha: float | None = None, **changes: object) -> tuple[nn.Module, dict[str, dict[str, Tensor]]]:
    """Return a trained DiT, and the files of its LoRA in every layout."""
    models = Models(small_dit(), small_dit(1), small_text_encoder(), small_vae(), tokenizer=None)  # type: ignore[arg-type]
    given = parameters(**{**LORA, "lora_alpha": alpha, **changes})
    trainable = make_trainable(models, given, Plan.of(given))
    dit = stir(models.network("dit2"))
    return dit, in_layouts(exported(trainable, given, partitioned=False), given)


def like_diffusers(given: dict[str, Any]) -> WanTransformer3DModel:
    """Return diffusers' transformer for the arguments of DiffSynth's."""
    return WanTransformer3DModel(
        patch_size=tuple(given["patch_size"]),
        num_attention_heads=given["num_heads"],
        attention_head_dim=given["dim"] // given["num_heads"],
        in_channels=given["in_dim"],
        out_channels=given["out_dim"],
        **{name: given[name] for name in ("text_dim", "freq_dim", "ffn_dim", "num_layers", "eps")},
    )


def diffusers_dit(seed: int) -> WanTransformer3DModel:
    """Return diffusers' transformer with the weights of `small_dit`, by diffusers' own converter."""
    network = like_diffusers(DIT_ARGUMENTS)
    network.load_state_dict(convert_wan_transformer_to_diffusers(dict(small_dit(seed).state_dict())))
    return network.requires_grad_(False).eval()


def diffusers_velocity(network: WanTransformer3DModel) -> Tensor:
    """Return what `velocity` returns, by diffusers' forward pass."""
    shapes = [(1, 16, 3, 4, 4), (1, 8, DIT_ARGUMENTS["text_dim"]), (1, 20, 3, 4, 4)]
    latents, context, image = (random(*shape, seed=seed) for seed, shape in enumerate(shapes))
    result: Tensor = network(torch.cat([latents, image], dim=1), torch.tensor([750.0]), context, return_dict=False)[0]
    return result


def pipeline() -> WanImageToVideoPipeline:
    """Return diffusers' pipeline with both experts and nothing else."""
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae", "scheduler", "image_processor", "image_encoder"))
    return WanImageToVideoPipeline(**parts, transformer=diffusers_dit(0), transformer_2=diffusers_dit(1), boundary_ratio=0.9)


def test_diffusers_transformer_is_the_same_network() -> None:
    torch.testing.assert_close(diffusers_velocity(diffusers_dit(1)), velocity(small_dit(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 8.0, 1.0])
@pytest.mark.parametrize("layout", ["diffusers", "comfyui"])
def test_diffusers_loads_the_lora_into_the_low_noise_expert_and_predicts_the_same(
    tmp_path: Path, layout: str, alpha: float | None
) -> None:
    dit, files = trained(alpha)
    save_file(files[f"lora-{layout}"], tmp_path / "lora.safetensors", metadata={"format": "pt", "lora_alpha": "8.0"})
    loaded = pipeline()
    loaded.load_lora_weights(tmp_path / "lora.safetensors", adapter_name="face", load_into_transformer_2=True)
    torch.testing.assert_close(diffusers_velocity(loaded.transformer_2), velocity(dit), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(velocity(dit), velocity(small_dit(1)), atol=1e-3)
    torch.testing.assert_close(diffusers_velocity(loaded.transformer), velocity(small_dit(0)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 8.0])
@pytest.mark.parametrize("name", ["lora", "lora-comfyui"])
def test_diffsynth_loads_its_own_layout_and_comfyuis_and_predicts_the_same(
    tmp_path: Path, name: str, alpha: float | None
) -> None:
    dit, files = trained(alpha)
    save_file(files[name], tmp_path / "lora.safetensors", metadata={"format": "pt", "lora_alpha": "8.0"})
    loading, low_noise = WanVideoPipeline(device="cpu", torch_dtype=torch.float32), small_dit(1)
    loading.load_lora(low_noise, str(tmp_path / "lora.safetensors"))
    torch.testing.assert_close(velocity(low_noise), velocity(dit), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_by_comfyuis_rule_every_key_is_a_layer_and_the_weights_are_the_trained_ones(alpha: float | None) -> None:
    dit, files = trained(alpha, lora_target_modules=ALL_LAYERS)
    tensors, network = dict(files["lora-comfyui"]), small_dit(1)
    for key, weight in network.state_dict().items():
        layer = f"diffusion_model.{key.removesuffix('.weight')}"
        if f"{layer}.lora_up.weight" in tensors:
            up, down = tensors.pop(f"{layer}.lora_up.weight"), tensors.pop(f"{layer}.lora_down.weight")
            weight.add_(tensors.pop(f"{layer}.alpha").item() / down.shape[0] * up @ down)
    assert tensors == {}
    torch.testing.assert_close(velocity(network), velocity(dit), rtol=1e-4, atol=1e-5)


def test_every_linear_layer_has_its_diffusers_name() -> None:
    names = {name for name, module in small_dit().named_modules() if isinstance(module, nn.Linear)}
    theirs = {name for name, module in diffusers_dit(0).named_modules() if isinstance(module, nn.Linear)}
    assert {diffusers_layer(name) for name in names} == theirs
    assert {wan_layer(f"transformer.{name}") for name in theirs} == names


def test_at_the_true_size_of_a14b_every_layer_has_its_diffusers_name_and_shape() -> None:
    a14b = next(entry for entry in MODEL_CONFIGS if entry["model_hash"] == "5b013604280dd715f8457c6ed6d6a626")
    given = a14b["extra_kwargs"]
    with torch.device("meta"):
        ours, theirs = WanModel(**given), like_diffusers(given)
    shapes = {name: module.weight.shape for name, module in theirs.named_modules() if isinstance(module, nn.Linear)}
    assert len(shapes) == 40 * 10 + 6
    assert shapes == {
        diffusers_layer(name): module.weight.shape for name, module in ours.named_modules() if isinstance(module, nn.Linear)
    }


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(EXPORT_FORMATS, 2)))
def test_a_lora_survives_the_way_through_any_two_layouts(first: ExportFormat, second: ExportFormat) -> None:
    lora = {
        "blocks.1.cross_attn.o": LowRank(random(4, 6), random(5, 4, seed=1), alpha=2.0),
        "head.head": LowRank(random(2, 6, seed=2), random(3, 2, seed=3)),
    }
    again = read_lora(to_layout(read_lora(to_layout(lora, first), first), second), second)
    assert again.keys() == lora.keys()
    for layer, part in lora.items():
        assert torch.equal(again[layer].delta(torch.float32), part.delta(torch.float32))


@pytest.mark.parametrize("form", ["base_model.model.{}.lora_A.weight", "pipe.dit2.{}.lora_A.default.weight"])
def test_pefts_and_rolls_files_are_read(tmp_path: Path, form: str) -> None:
    _, files = trained()
    form = form.replace("lora_A", "{}")
    renamed = {}
    for key, tensor in files["lora"].items():
        layer, _, part = key.removesuffix(".default.weight").rpartition(".")
        renamed[form.format(layer, part)] = tensor
    torch.save(renamed, tmp_path / "diffusion_module.pth")
    lora, _ = load_lora(tmp_path / "diffusion_module.pth")
    assert to_layout(lora, "diffsynth").keys() == files["lora"].keys()


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no tensors"),
        ({"blocks.0.self_attn.q.diff": torch.zeros(2)}, r"'blocks\.0\.self_attn\.q\.diff' is no weight of a LoRA"),
        ({"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 3)}, r"blocks\.0\.ffn\.0: lora_B \(or lora_up\) is missing"),
        (
            {"blocks.0.ffn.0.lora_A.weight": torch.zeros(2, 3), "blocks.0.ffn.0.lora_B.weight": torch.zeros(4, 5)},
            r"\[4, 5\] times \[2, 3\] is no product",
        ),
    ],
)
def test_what_is_no_lora_is_refused_by_name(tensors: dict[str, Tensor], said: str) -> None:
    with pytest.raises(RewardFLError, match=f"file: .*{said}|file: {said}") as caught:
        read_lora(tensors, "file")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.MODEL_UNKNOWN, ExitCode.BAD_CONFIGURATION)


def test_a_layer_that_diffusers_lacks_is_named() -> None:
    with pytest.raises(RewardFLError, match=r"'blocks\.0\.cross_attn\.k_img': WanTransformer3DModel has no such layer"):
        to_layout({"blocks.0.cross_attn.k_img": LowRank(random(2, 3), random(3, 2))}, "diffusers")


def test_the_run_writes_the_layouts_that_are_asked_for() -> None:
    assert list(trained()[1]) == ["lora", "lora-comfyui", "lora-diffusers"]
    assert list(trained(export_formats="comfyui")[1]) == ["lora-comfyui"]
    weights = {"dit2": {"weight": torch.zeros(1)}}
    assert in_layouts(weights, parameters()) == weights


def test_export_writes_beside_the_lora_keeps_what_it_says_and_overwrites_nothing(tmp_path: Path) -> None:
    _, files = trained()
    source = tmp_path / "face.safetensors"
    save_file(files["lora"], source, metadata={"lora_base_model": "dit2"})
    answer = CliRunner().invoke(app, ["export", str(source), "-f", "comfyui", "-f", "diffusers"])
    assert (answer.exit_code, answer.output.split()[1::2]) == (
        0,
        [str(tmp_path / "face-comfyui.safetensors"), str(tmp_path / "face-diffusers.safetensors")],
    )
    with safe_open(tmp_path / "face-diffusers.safetensors", "pt") as file:
        assert file.metadata()["lora_base_model"] == "dit2"
    written = load_file(tmp_path / "face-comfyui.safetensors")
    assert written.keys() == files["lora-comfyui"].keys()
    (back,) = convert_file(tmp_path / "face-comfyui.safetensors", ["diffsynth"], tmp_path / "back")
    assert back.name == "face.safetensors"
    assert all(torch.equal(tensor, files["lora"][key]) for key, tensor in load_file(back).items())
    again = CliRunner().invoke(app, ["export", str(source), "-f", "diffusers"])
    assert again.exit_code == ExitCode.USAGE
    assert "face-diffusers.safetensors: exists." in again.output


def test_export_of_a_missing_file_ends_with_66(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["export", str(tmp_path / "no.safetensors"), "-f", "comfyui"])
    assert answer.exit_code == ExitCode.MISSING_INPUT
    assert "no.safetensors: no such file" in answer.output


def test_an_unknown_layout_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["export", str(tmp_path / "no.safetensors"), "-f", "kohya"])
    assert answer.exit_code == ExitCode.USAGE
    assert "kohya: unknown; known are diffsynth, comfyui, diffusers" in answer.output
