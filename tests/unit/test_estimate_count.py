"""Counting without data: equal to a real run, to one run of everything, and to what is known of A14B."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import VideoVAE_, WanVideoVAE
from torch import nn

from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.estimate.count import Counts, count_first_phase, count_step, run_step
from rewardfl_trainer.estimate.face_networks import Detector, Recogniser, antelopev2
from rewardfl_trainer.estimate.networks import Architecture, a14b, architecture_of, empty_models, empty_rewards
from rewardfl_trainer.estimate.step import Step, Video
from rewardfl_trainer.estimate.tracker import Tracker
from rewardfl_trainer.lora import lora_layers
from rewardfl_trainer.models import shapes_digest
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import make_trainable
from tests.unit.datasets import parameters
from tests.unit.face_networks import write_detector, write_recogniser
from tests.unit.small_networks import DIT_ARGUMENTS, TEXT_ARGUMENTS, VAE_ARGUMENTS

VIDEO = Video(9, 64, 64)
A14B = {
    "trainable_models": "dit2",
    "lora_base_model": "dit2",
    "min_timestep_boundary": 0.9,
    "model_paths": ["hf://Wan-AI/Wan2.2-I2V-A14B"],
}


def small_vae() -> nn.Module:
    vae: nn.Module = WanVideoVAE()
    vae.model = VideoVAE_(**VAE_ARGUMENTS)
    return vae


def family(num_layers: int, **dit: object) -> Architecture:
    builders = {
        "dit": lambda: WanModel(**{**DIT_ARGUMENTS, **dit, "num_layers": num_layers}),
        "text_encoder": lambda: WanTextEncoder(**TEXT_ARGUMENTS),
        "vae": small_vae,
    }
    return Architecture("small", builders)


def given(**changes: object) -> TrainingParameters:
    return parameters(**{**A14B, "dtype": "fp32", "lora_rank": 4, **changes})


def peak(counts: Counts) -> float:
    return max(sum(labels.values()) for labels in counts.peaks.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing_blocks": 1, "gradient_checkpointing_attention": 2},
        {"gradient_checkpointing_blocks": 2, "use_gradient_checkpointing_offload": True},
        {"gradient_checkpointing_blocks": 1, "trainable_models": "text_encoder", "lora_base_model": None},
        {"gradient_checkpointing_blocks": 1, "trainable_models": "vae", "lora_base_model": None},
    ],
)
def test_two_depths_tell_what_one_run_of_everything_tells(changes: dict[str, object]) -> None:
    whole_parameters = given(num_inference_steps=2, mid_timestep=0, final_timestep=1, sigma_shift=0.5, **changes)
    architecture = family(7)
    counted = count_step(architecture, whole_parameters, VIDEO)
    whole = run_step(architecture, whole_parameters, VIDEO, 7)
    assert sum(counted.flops.values()) == pytest.approx(sum(whole.flops.values()), rel=1e-6)
    for work, labels in whole.peaks.items():
        assert sum(counted.peaks[work].values()) == pytest.approx(sum(labels.values()), rel=0.01)
    assert counted.host_bytes == pytest.approx(whole.host_bytes, rel=0.05)  # one block too many


def materialise(module: nn.Module) -> None:
    """Give a network on the meta device small random weights."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                values = 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
                part._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_meta:
                part._buffers[name] = torch.ones(buffer.shape, dtype=buffer.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"use_gradient_checkpointing": False, "kl_steps": "sampled"}])
def test_a_real_run_on_the_cpu_computes_and_holds_what_was_counted(changes: dict[str, object]) -> None:
    chosen = given(num_inference_steps=4, mid_timestep=2, final_timestep=3, **changes)
    architecture = family(4, dim=192, ffn_dim=512, num_heads=4)
    counted = run_step(architecture, chosen, VIDEO, 4)
    tracker = real_step(architecture, chosen)
    assert dict(tracker.flops) == counted.flops
    assert tracker.peak.total == pytest.approx(peak(counted), rel=0.01)
    for work, found in tracker.peaks.items():
        assert found.total == pytest.approx(sum(counted.peaks[work].values()), rel=0.01)


def real_step(architecture: Architecture, chosen: TrainingParameters) -> Tracker:
    """Run the same step on real weights and values."""
    plan = Plan.of(chosen)
    models = empty_models(architecture, chosen, {"dit2", "vae"})
    trainable = make_trainable(models, chosen, plan)
    models.vae.model.encoder, models.vae.model.conv1 = nn.Identity(), nn.Identity()
    rewards = empty_rewards(chosen)
    step = Step.of(models, trainable, rewards, chosen)
    for network in step.networks():
        materialise(network)
    with step.tracker:
        condition, latents = step.inputs(VIDEO)
        reference = rewards.reference(torch.zeros(1, 3, 5, VIDEO.height, VIDEO.width))
        step.hold_weights()
        steps = list(plan.window.steps)[: 1 if chosen.kl_steps == "sampled" else None]
        step.train(condition, latents + torch.randn_like(latents), reference, steps, plan.experts.count("dit"))
    return step.tracker


def test_the_face_networks_have_antelopev2s_sizes() -> None:
    with torch.device("meta"):
        recogniser, detector = Recogniser(), Detector()
    assert sum(p.numel() for p in recogniser.parameters()) == pytest.approx(65.2e6, rel=0.01)
    assert sum(p.numel() for p in detector.parameters()) == pytest.approx(4.23e6, rel=0.1)
    assert antelopev2().detector.network is not None


@pytest.mark.slow
def test_antelopev2s_networks_stand_for_files_that_hold_sizes_as_data(tmp_path: Path) -> None:
    write_detector(tmp_path)
    write_recogniser(tmp_path)
    chosen = given(reward_model_path=str(tmp_path), num_inference_steps=2, mid_timestep=1, final_timestep=1, sigma_shift=0.5)
    (part,) = empty_rewards(chosen).parts.values()
    networks = part.reward.detector.network, part.reward.recogniser.network
    assert all(isinstance(network, Detector | Recogniser) for network in networks)
    assert count_step(family(2), chosen, VIDEO).flops["reward", "no_grad"] > 0


def a14b_dit() -> nn.Module:
    return empty_models(a14b(), parameters(**A14B), {"dit2", "vae"}).network("dit2")


def test_the_true_a14b_is_built_and_its_hash_is_diffsynths() -> None:
    dit = a14b_dit()
    shapes = {name: list(tensor.shape) for name, tensor in dit.state_dict().items()}
    assert shapes_digest(shapes) == "5b013604280dd715f8457c6ed6d6a626"
    assert sum(parameter.numel() for parameter in dit.parameters()) == pytest.approx(14.29e9, rel=1e-3)
    assert sum(parameter.nbytes for parameter in dit.parameters()) == pytest.approx(28.9e9, rel=0.01)


def test_the_lora_lands_on_400_layers_of_a14b_and_nowhere_else() -> None:
    chosen = parameters(**A14B, lora_rank=32)
    models = empty_models(a14b(), chosen, {"dit2", "vae"})
    trainable = make_trainable(models, chosen, Plan.of(chosen))
    dit = models.network("dit2")
    adapted = {name for name, module in dit.named_modules() if hasattr(module, "lora_A")}
    attention = {f"blocks.{b}.{kind}_attn.{part}" for b in range(40) for kind in ("self", "cross") for part in "qkvo"}
    assert adapted == attention | {f"blocks.{b}.ffn.{part}" for b in range(40) for part in (0, 2)}
    assert len(adapted) == len(list(lora_layers(dit))) == 400
    trained = trainable.parameters()
    assert sum(parameter.numel() for _, parameter in trained) == 153_354_240
    assert {parameter.dtype for _, parameter in trained} == {torch.float32}


def test_what_lies_in_a_bucket_is_taken_for_a14b() -> None:
    assert architecture_of(parameters(**A14B)).title == "Wan2.2-I2V-A14B"


def test_the_first_phase_holds_one_network_after_the_other() -> None:
    conditions, leading = count_first_phase(family(4), given(), VIDEO)
    assert {label for label, _ in conditions.flops} >= {"text", "encode"}
    assert {label for label, _ in leading.flops} == {"activations"}
    deeper = count_first_phase(replace(family(8)), given(), VIDEO)[1]
    assert deeper.flops["activations", "no_grad"] > 1.5 * leading.flops["activations", "no_grad"]
