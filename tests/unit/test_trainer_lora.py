"""The LoRA: where it sits, in which type, what it leaves alone, and the file it becomes."""

import pytest
import torch
from diffsynth.utils.lora.general import GeneralLoRALoader
from torch import Tensor, nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.export import exported
from rewardfl_trainer.lora import CastLinear, adapters_disabled, add_lora, check_masters, lora_layers
from rewardfl_trainer.models import Models
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import Trainable, make_trainable
from rewardfl_trainer.wan_dit import predict_velocity
from tests.unit.datasets import parameters
from tests.unit.small_networks import TEXT_ARGUMENTS, random, small_dit, small_text_encoder, small_vae

TIMESTEP = torch.tensor([750.0])
LORA = {"trainable_models": "dit2", "lora_base_model": "dit2", "min_timestep_boundary": 0.9, "lora_rank": 4}


def velocity(dit: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    latents, context, image = (
        random(*shape, seed=seed).to(dtype)
        for seed, shape in enumerate([(1, 16, 3, 4, 4), (1, 8, TEXT_ARGUMENTS["dim"]), (1, 20, 3, 4, 4)])
    )
    return predict_velocity(dit, latents, TIMESTEP, context, image)


def adapted(dtype: torch.dtype = torch.float32, **changes: object) -> nn.Module:
    dit = small_dit().to(dtype)
    for name in ("time_embedding", "time_projection"):
        getattr(dit, name).float()
    add_lora(dit, parameters(**{**LORA, **changes}), seed=1)
    return dit


def stir(dit: nn.Module) -> nn.Module:
    """Give the LoRA something to say."""
    generator = torch.Generator().manual_seed(5)
    for parameter in dit.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return dit


def test_the_lora_sits_on_every_target_of_every_block() -> None:
    names = {name for name, module in adapted().named_modules() if hasattr(module, "lora_A")}
    attention = {f"blocks.{b}.{kind}_attn.{part}" for b in (0, 1) for kind in ("self", "cross") for part in "qkvo"}
    assert names == attention | {f"blocks.{b}.ffn.{part}" for b in (0, 1) for part in (0, 2)}


@pytest.mark.parametrize(
    ("targets", "per_block"), [("q", 2), ("self_attn.q", 1), ("ffn.0, ffn.2", 2), ("blocks.1.cross_attn.o", 0.5)]
)
def test_lora_target_modules_decides_which_layers_are_trained(targets: str, per_block: float) -> None:
    names = [name for name, module in adapted(lora_target_modules=targets).named_modules() if hasattr(module, "lora_A")]
    wanted = tuple(target.strip() for target in targets.split(","))
    assert len(names) == 2 * per_block
    assert all(name.endswith(wanted) for name in names)


@pytest.mark.parametrize("rank", [1, 7])
def test_lora_rank_is_the_inner_size_of_every_pair(rank: int) -> None:
    for layer in lora_layers(adapted(lora_rank=rank)):
        assert layer.lora_A["default"].weight.shape[0] == rank
        assert layer.lora_B["default"].weight.shape[1] == rank


def test_lora_alpha_over_rank_is_the_strength_and_the_rank_itself_is_strength_one() -> None:
    x = random(3, 48)
    changes = {}
    for alpha in (None, 4.0, 8.0, 1.0):
        layer = next(iter(lora_layers(stir(adapted(lora_alpha=alpha)))))
        changes[alpha] = layer(x) - layer.base_layer(x)
        product = x @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
        torch.testing.assert_close(changes[alpha], product * (1.0 if alpha is None else alpha / 4))
    assert torch.equal(changes[None], changes[4.0])
    assert float(changes[8.0].detach().abs().max()) > 0.01


def test_a_fresh_lora_changes_nothing() -> None:
    assert torch.equal(velocity(adapted()), velocity(small_dit()))


def test_switched_off_the_trained_lora_changes_nothing() -> None:
    dit = stir(adapted())
    with adapters_disabled(dit):
        off = velocity(dit)
    assert torch.equal(off, velocity(small_dit()))
    assert not torch.allclose(velocity(dit), off)


def test_switching_off_and_on_keeps_what_is_trained() -> None:
    dit = adapted()
    before = [name for name, parameter in dit.named_parameters() if parameter.requires_grad]
    with adapters_disabled(dit):
        velocity(dit)
    assert [name for name, parameter in dit.named_parameters() if parameter.requires_grad] == before
    assert len(before) == 2 * len(list(lora_layers(dit)))


def test_lora_masters_are_fp32_under_bf16_and_computed_in_bf16() -> None:
    dit = stir(adapted(torch.bfloat16))
    seen: list[torch.dtype] = []
    for module in dit.modules():
        if isinstance(module, CastLinear):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    result = velocity(dit, torch.bfloat16)
    result.float().square().mean().backward()
    assert set(seen) == {torch.bfloat16}
    trained = [parameter for parameter in dit.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.grad.dtype for parameter in trained if parameter.grad is not None} == {torch.float32}


def test_a_step_of_2_5e_6_moves_an_fp32_master_and_not_a_bf16_one() -> None:
    layer = next(iter(lora_layers(adapted(torch.bfloat16))))
    weight = layer.lora_A["default"].weight.detach()
    assert not torch.equal(weight + 2.5e-6, weight)
    assert float(((weight.bfloat16() + 2.5e-6) == weight.bfloat16()).float().mean()) > 0.9


def test_a_bf16_master_is_refused() -> None:
    dit = adapted()
    next(iter(lora_layers(dit))).lora_A["default"].weight.data = torch.zeros(4, 48, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"lora_A.*bfloat16 master"):
        check_masters(dit)


def test_the_same_seed_initialises_the_same_lora() -> None:
    first, second = (adapted().state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_target_that_does_not_exist_is_named_beside_those_that_do() -> None:
    with pytest.raises(RewardFLError, match="'to_q'") as caught:
        adapted(lora_target_modules="q,to_q")
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)
    assert "self_attn.q" in caught.value.hint


def small_models() -> Models:
    return Models(small_dit(), small_dit(1), small_text_encoder(), small_vae(), tokenizer=None)  # type: ignore[arg-type]


def trainable(models: Models, **changes: object) -> Trainable:
    given = parameters(**{**LORA, **changes})
    return make_trainable(models, given, Plan.of(given))


@pytest.mark.parametrize("alpha", [None, 8.0, 1.0])
def test_diffsynth_loads_the_exported_lora_and_predicts_the_same(alpha: float | None) -> None:
    models = small_models()
    given = parameters(**{**LORA, "lora_alpha": alpha})
    trained = make_trainable(models, given, Plan.of(given))
    stir(models.network("dit2"))
    tensors = exported(trained, given, partitioned=False)["lora"]
    assert all(".default.weight" in name and tensor.dtype == torch.float32 for name, tensor in tensors.items())
    merged = small_dit(1)
    GeneralLoRALoader().fuse_lora_to_base_model(merged, tensors)
    torch.testing.assert_close(velocity(merged), velocity(models.network("dit2")), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(velocity(merged), velocity(small_dit(1)), atol=1e-3)


def test_with_a_lora_nothing_else_is_trained() -> None:
    models = small_models()
    trained = trainable(models)
    assert all(".lora_" in name for name, _ in trained.parameters())
    for name, network in models.networks().items():
        expected = len(trained.parameters()) if name == "dit2" else 0
        assert sum(parameter.requires_grad for parameter in network.parameters()) == expected


@pytest.mark.parametrize("names", ["dit2", "vae", "text_encoder", "dit2,text_encoder"])
def test_full_training_trains_all_of_the_named_models_and_nothing_else(names: str) -> None:
    models = small_models()
    trained = trainable(models, trainable_models=names, lora_base_model=None)
    for name, network in models.networks().items():
        assert {parameter.requires_grad for parameter in network.parameters()} == {name in names.split(",")}
    assert trained.reference is not None
    for name in names.split(","):
        copied = trained.reference.network(name)
        assert copied is not models.network(name)
        assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_without_kl_no_frozen_copy_is_kept() -> None:
    assert trainable(small_models(), lora_base_model=None, kl_weight=0).reference is None


def test_a_dit_that_no_gradient_reaches_is_refused_with_the_steps_it_denoises() -> None:
    with pytest.raises(RewardFLError, match=r"trainable_models=dit: .*steps 0 to 2.*steps 4 \(mid_timestep\) to 7") as caught:
        trainable(small_models(), trainable_models="dit", lora_base_model="dit")
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
