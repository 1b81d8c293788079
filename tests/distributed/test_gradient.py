"""The gradient of the LoRA, from the ArcFace embedding through warp, VAE decoder and the window's DiT steps, against finite
differences in double precision on the tiny family.
"""

from pathlib import Path

import pytest
import torch
from diffsynth.models.wan_video_dit import set_to_torch_norm
from diffsynth.models.wan_video_vae import Upsample
from torch import Tensor, nn

from rewardfl_trainer.conditioning import Conditioner
from rewardfl_trainer.data import VideoDataset, load_rows
from rewardfl_trainer.feedback import RewardFeedback
from rewardfl_trainer.models import load_models
from rewardfl_trainer.noise import derived_seed
from rewardfl_trainer.preparation import Prepared, Preparer
from rewardfl_trainer.rewards.composition import Part, Rewards
from rewardfl_trainer.rewards.detection import Faces
from rewardfl_trainer.rewards.face import FaceReward
from rewardfl_trainer.rollout import Rollout
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.trainable import Trainable, make_trainable
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
STEP = 1e-6
DIRECTIONS = 2


class PinnedFaces(FaceReward):
    """The face reward with faces where the ground truth has them: detection carries no gradient, nor must the differences."""

    faces: Faces | None = None

    def find_faces(self, frames_F3HW: Tensor) -> Faces:
        self.faces = super().find_faces(frames_F3HW) if self.faces is None else self.faces
        return self.faces


def in_double(network: nn.Module) -> nn.Module:
    """Convert a network, and take out DiffSynth's own casts to fp32 (meant for bf16), which would round doubles."""
    set_to_torch_norm([network])
    for module in network.modules():
        if isinstance(module, Upsample):
            module.__class__ = nn.Upsample
    return network.double()


class Toy:
    """One sample of the tiny family in double precision."""

    def __init__(self, make_config: MakeConfig, **training: object) -> None:
        config = make_config(rows=1, **training)
        parameters = config.training
        models = load_models(parameters, CPU)
        plan = Plan.of(parameters)
        self.trainable = make_trainable(models, parameters, plan)
        for network in models.networks().values():
            in_double(network)
        stir(self.trainable)
        conditioner = Conditioner(models, parameters.extra_input_names, torch.float64, CPU)
        self.reward = PinnedFaces.load(Path(parameters.reward_model_path), dtype=torch.float64)
        rewards = Rewards({"face_identity": Part(self.reward, "", 1.0, parameters.reward_baseline, parameters.reward_scale)})
        rollout = Rollout(models, self.trainable, plan, parameters)
        dataset = VideoDataset(load_rows(Path(config.dataset)), parameters)
        preparer = Preparer(dataset, conditioner, rewards, parameters, CPU)
        self.feedback = RewardFeedback(rollout, preparer, rewards, self.trainable, parameters)
        self.prepared: Prepared = preparer(0)

    def loss(self) -> Tensor:
        return self.feedback.loss(self.prepared, visit=0)[0]

    @torch.no_grad()
    def moved(self, direction: list[Tensor], length: float) -> float:
        """Return the loss a step along `direction` away."""
        for (_, parameter), part in zip(self.trainable.parameters(), direction, strict=True):
            parameter.add_(part, alpha=length)
        loss = float(self.loss())
        for (_, parameter), part in zip(self.trainable.parameters(), direction, strict=True):
            parameter.add_(part, alpha=-length)
        return loss


def stir(trainable: Trainable) -> None:
    """Move the LoRA away from its start, where half of its gradient is zero."""
    generator = torch.Generator().manual_seed(derived_seed("stir"))
    for _, parameter in trainable.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.02)


# Every step of the trained DiT lies in the window: what it does before the window is a constant to the gradient, but not to
# the differences. So with the KL, whose reference moves with the latents of the steps before.
@pytest.mark.parametrize(
    "training",
    [
        {"kl_weight": 0.0, "mid_timestep": 3},
        {"kl_weight": 0.0, "mid_timestep": 3, "use_gradient_checkpointing": True, "use_gradient_checkpointing_offload": True},
        {"kl_weight": 1.0, "mid_timestep": 7, "min_timestep_boundary": 0.5},
        {"kl_weight": 0.0, "mid_timestep": 2, "final_timestep": 3, "num_inference_steps": 4},
    ],
    ids=["window", "checkpointed", "kl", "four steps"],
)
def test_the_loras_gradient_agrees_with_finite_differences(make_config: MakeConfig, training: dict[str, object]) -> None:
    toy = Toy(make_config, **training)
    toy.loss().backward()
    assert toy.reward.faces is not None
    assert bool(toy.reward.faces.found_F.any()), "without a face there is no gradient to compare"
    gradients = [parameter.grad for _, parameter in toy.trainable.parameters()]
    assert all(gradient is not None and float(gradient.abs().max()) > 0 for gradient in gradients)
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        direction = [torch.randn(gradient.shape, generator=generator, dtype=torch.float64) for gradient in gradients]
        predicted = sum(float((gradient * part).sum()) for gradient, part in zip(gradients, direction, strict=True))
        measured = (toy.moved(direction, STEP) - toy.moved(direction, -STEP)) / (2 * STEP)
        assert measured == pytest.approx(predicted, rel=1e-5, abs=1e-9)
