"""What the sampling parameters do to a generation: which network runs at which step, with gradient or without."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rewardfl_trainer.conditioning import Condition
from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.models import Models
from rewardfl_trainer.noise import kl_steps
from rewardfl_trainer.rollout import Rollout, velocity_of
from rewardfl_trainer.sampling import Plan, denoise
from rewardfl_trainer.trainable import make_trainable
from rewardfl_trainer.wan_vae import latent_shape
from tests.unit.datasets import parameters
from tests.unit.small_networks import TEXT_ARGUMENTS, random, small_dit, small_text_encoder, small_vae

SHAPE = latent_shape(5, 32, 32)
LORA = {"trainable_models": "dit2", "lora_base_model": "dit2", "min_timestep_boundary": 0.9, "lora_rank": 2, "dtype": "fp32"}
ONE_DIT = {"min_timestep_boundary": 1.0, "trainable_models": "dit", "lora_base_model": "dit"}
KEPT = {"use_gradient_checkpointing": False}


class Watched:
    """A rollout of small networks, and the forward passes of both DiTs as (network, with gradient)."""

    def __init__(self, **changes: Any) -> None:
        self.given = parameters(**{**LORA, **changes})
        self.models = Models(small_dit(), small_dit(1), small_text_encoder(), small_vae(), tokenizer=None)  # type: ignore[arg-type]
        self.plan = Plan.of(self.given)
        self.trainable = make_trainable(self.models, self.given, self.plan)
        self.rollout = Rollout(self.models, self.trainable, self.plan, self.given)
        self.passes: list[tuple[str, bool]] = []
        for name in ("dit", "dit2"):
            self._watch(name, self.models.network(name))

    def _watch(self, name: str, network: Any) -> None:
        head: nn.Module = network.head
        head.register_forward_pre_hook(lambda *_: self.passes.append((name, torch.is_grad_enabled())))

    def video(self) -> Tensor:
        """Return a trained video."""
        condition = Condition(random(1, 8, TEXT_ARGUMENTS["dim"]), random(1, 20, *SHAPE[2:]), SHAPE)
        sampled = self.given.kl_steps == "sampled"
        steps = kl_steps(self.plan.window, sampled=sampled, seed=self.given.seed, row=0, visit=0)
        video_B3THW, _ = self.rollout.trained_video(condition, random(*SHAPE, seed=3), steps)
        return video_B3THW


def high(count: int) -> list[tuple[str, bool]]:
    return [("dit", False)] * count


def low(count: int, *, gradient: bool) -> list[tuple[str, bool]]:
    return [("dit2", gradient)] * count


@pytest.mark.parametrize(
    ("changes", "passes"),
    [
        ({}, [*high(3), *low(1, gradient=False), *low(4, gradient=True)]),
        ({"mid_timestep": 6}, [*high(3), *low(3, gradient=False), *low(2, gradient=True)]),
        ({"final_timestep": 5}, [*high(3), *low(1, gradient=False), *low(2, gradient=True), *low(2, gradient=False)]),
        ({"num_inference_steps": 4, "mid_timestep": 3, "final_timestep": 3}, [*high(2), ("dit2", False), ("dit2", True)]),
        ({"min_timestep_boundary": 0.8}, [*high(4), ("dit", True), *low(3, gradient=True)]),
        ({"max_timestep_boundary": 0.98}, [("dit2", False), *high(2), ("dit2", False), *low(4, gradient=True)]),
    ],
    ids=["document", "mid", "final", "steps", "min boundary", "max boundary"],
)
def test_each_step_is_made_by_its_expert_with_gradient_in_the_window_alone(
    changes: dict[str, Any], passes: list[tuple[str, bool]]
) -> None:
    watched = Watched(kl_weight=0, **KEPT, **changes)
    watched.video()
    assert watched.passes == passes


def test_both_boundaries_one_let_one_dit_make_every_step() -> None:
    watched = Watched(kl_weight=0, **ONE_DIT, **KEPT)
    watched.video()
    assert watched.passes == [("dit", False)] * 4 + [("dit", True)] * 4


@pytest.mark.parametrize(("changes", "references"), [({}, 4), ({"kl_steps": "sampled"}, 1), ({"kl_weight": 0.0}, 0)])
def test_the_untrained_model_runs_once_for_each_step_of_the_kl(changes: dict[str, Any], references: int) -> None:
    watched = Watched(**KEPT, **changes)
    watched.video()
    in_window = watched.passes[4:]
    assert in_window.count(("dit2", True)) == 4
    assert in_window.count(("dit2", False)) == references


@pytest.mark.parametrize("compat", ["none", "roll"])
def test_roll_decodes_in_diffsynths_tiles_and_none_exactly(compat: str) -> None:
    one_step = {"num_inference_steps": 1, "mid_timestep": 0, "final_timestep": 0, "kl_weight": 0}
    watched = Watched(compat=compat, **{**ONE_DIT, **one_step, "dtype": "bf16"})
    condition = Condition(random(1, 8, TEXT_ARGUMENTS["dim"]), random(1, 20, 1, 36, 34), (1, 16, 1, 36, 34))
    noise = random(1, 16, 1, 36, 34, seed=3)
    clean, _ = denoise(noise, watched.plan.schedule, velocity_of(watched.models, watched.plan, condition))
    tiled = watched.models.vae.tiled_decode(clean.detach(), "cpu", (34, 34), (18, 16)).clamp(-1, 1)
    exact = watched.models.vae.decode(clean.detach(), device="cpu")
    video, _ = watched.rollout.trained_video(condition, noise, [])
    assert float((tiled - exact).abs().max()) > 1e-3
    torch.testing.assert_close(video.detach(), tiled if compat == "roll" else exact, rtol=1e-4, atol=1e-5)


def kept_bytes(**changes: Any) -> int:
    """Return the bytes that the graph of a trained video keeps for its backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    watched = Watched(kl_weight=0, **changes)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        watched.video()
    return sum(kept.values())


def test_gradient_checkpointing_keeps_fewer_activations() -> None:
    # What is left is the decoder's, which keeps its last frames.

    assert kept_bytes(use_gradient_checkpointing=True) < 0.8 * kept_bytes(use_gradient_checkpointing=False)


class Copies(TorchDispatchMode):
    """Counts the bytes that are copied from tensor to tensor."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.copy_.default:
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("offload", [False, True])
def test_offload_moves_the_input_of_every_checkpoint_to_cpu_memory(offload: bool) -> None:
    checkpointing = Checkpointing.of(parameters(use_gradient_checkpointing_offload=offload))
    x = torch.ones(8, 16, requires_grad=True)
    with Copies() as copies:  # on a CPU too what is moved is copied
        checkpointing.run(lambda x: (x * 2).sin(), x * 1)
    assert copies.bytes == (x.nbytes if offload else 0)
