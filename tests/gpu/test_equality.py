"""What is computed on the device is what a CPU computes, and what saves memory changes no gradient."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.conditioning import Condition, Conditioner
from rewardfl_trainer.data import VideoDataset, load_rows
from rewardfl_trainer.environment import Process
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.models import DTYPES, Models, load_models
from rewardfl_trainer.noise import sample_noise
from rewardfl_trainer.offload import Offload
from rewardfl_trainer.rewards.composition import Rewards
from rewardfl_trainer.rewards.face import FaceResult
from rewardfl_trainer.wan_dit import predict_velocity
from rewardfl_trainer.wan_vae import decode, latent_shape
from tests.distributed.conftest import MakeConfig
from tests.gpu.device import CPU, DEVICE, DTYPE, IS_GPU, error, sample
from tests.unit.small_networks import random

FP32_ERROR = 1e-4 if IS_GPU else 1e-6
"""Between two orders of the same additions in fp32."""
SMALL = {"num_frames": 5, "max_pixels": 64 * 64, "num_inference_steps": 2, "mid_timestep": 1, "final_timestep": 1}
LORA_B = 0.01
DECODED = latent_shape(33, 256, 256) if IS_GPU else latent_shape(13, 32, 32)
ROUNDS = 5 if IS_GPU else 1
"""A copy that comes too late shows in some runs only."""


def truth(config: TrainerConfig) -> Tensor:
    """The first row's video 1 3 T H W, on the CPU."""
    return VideoDataset(load_rows(Path(config.dataset)), config.training)[0].video_3THW[None]


def scored(config: TrainerConfig, device: torch.device) -> tuple[FaceResult, Tensor]:
    """The face reward of a disturbed video, and its gradient in the pixels."""
    rewards, real = Rewards.load(config.training, device), truth(config).to(device)
    video = (real + 0.1 * random(*real.shape).to(device)).clamp(-1, 1).requires_grad_()
    scores = rewards(video, rewards.reference(real))
    (gradient,) = torch.autograd.grad(scores.value, video)
    assert scores.faces is not None
    return scores.faces, gradient


def test_the_face_reward_finds_the_same_faces_and_gives_the_same_score_and_gradient(
    make_config: MakeConfig, process: Process
) -> None:
    config = make_config(num_frames=9)
    assert torch.backends.cudnn.allow_tf32 is not IS_GPU, "TF32 keeps 10 bits of an fp32 convolution's inputs"
    (found, gradient), (expected, expected_gradient) = (scored(config, device) for device in (process.device, CPU))
    assert found.no_face_fraction == expected.no_face_fraction < 1
    assert torch.equal(found.frame_scores_BT.isnan().cpu(), expected.frame_scores_BT.isnan())
    torch.testing.assert_close(found.boxes_BT4.cpu(), expected.boxes_BT4, rtol=0, atol=0.02, equal_nan=True)
    torch.testing.assert_close(found.keypoints_BT52.cpu(), expected.keypoints_BT52, rtol=0, atol=0.02, equal_nan=True)
    torch.testing.assert_close(found.score_B.cpu(), expected.score_B, rtol=0, atol=1e-3)
    assert float(expected_gradient.norm()) > 0
    assert error(gradient, expected_gradient) < (0.02 if IS_GPU else 1e-6)


@pytest.mark.parametrize("how", ["recomputed", "offloaded"])
def test_what_saves_memory_leaves_loss_and_gradient_of_a_sample_as_they_are(
    make_config: MakeConfig, process: Process, how: str
) -> None:
    given = {**SMALL, "dtype": "fp32", "gradient_checkpointing_blocks": 2}
    saving = {"use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": how == "offloaded"}
    kept = sample(make_config(**given), process.device, LORA_B)
    assert kept.norm > 0
    for _ in range(ROUNDS):
        found = sample(make_config(**given, **saving), process.device, LORA_B)
        assert found.loss == pytest.approx(kept.loss, abs=FP32_ERROR)
        assert error(found.gradient, kept.gradient) < FP32_ERROR


def decoded(models: Models, how: Checkpointing) -> tuple[Tensor, Tensor]:
    leaf = random(*DECODED).to(DEVICE).requires_grad_()
    video = decode(models.vae, leaf, how)
    (gradient,) = torch.autograd.grad(video.square().mean(), leaf)
    return video.detach(), gradient


def test_decoding_in_segments_equals_decoding_in_one_graph(make_config: MakeConfig, process: Process) -> None:
    models = load_models(make_config(dtype="fp32").training, process.device, names=())
    video, gradient = decoded(models, Checkpointing(enabled=False))
    every = [Checkpointing(), Checkpointing(offload=True), Checkpointing(offload=True, mover=Offload(ahead_bytes=2**40))]
    for how in every * ROUNDS:
        found_video, found_gradient = decoded(models, how)
        assert error(found_video, video) < FP32_ERROR
        assert error(found_gradient, gradient) < FP32_ERROR


def moved(condition: Condition, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    assert condition.image_BCthw is not None
    return condition.context_BLD.to(device, dtype), condition.image_BCthw.to(device, dtype)


@torch.no_grad()
def velocity(config: TrainerConfig, device: torch.device, condition: Condition) -> Tensor:
    models, dtype = load_models(config.training, device, names=("dit2",)), DTYPES[config.training.dtype]
    context, image = moved(condition, device, dtype)
    latents = sample_noise(condition.latent_shape, seed=0, row=0, draw=0).to(device, dtype)
    assert models.dit2 is not None
    found = predict_velocity(models.dit2, latents, torch.tensor([750.0]), context, image)
    assert found.dtype == dtype
    return found


def test_the_velocity_in_the_devices_precision_is_near_that_of_a_cpu_in_fp32(make_config: MakeConfig, process: Process) -> None:
    exact = make_config(**{**SMALL, "dtype": "fp32"})
    models = load_models(exact.training, CPU, names=("text_encoder",))
    condition = Conditioner(models, exact.training.extra_input_names, torch.float32, CPU)("a person", truth(exact)[0])
    expected = velocity(exact, CPU, condition)
    assert error(velocity(exact, process.device, condition), expected) < FP32_ERROR
    assert error(velocity(make_config(**SMALL, dtype=DTYPE), process.device, condition), expected) < 0.03
