"""What is computed before training equals what would be computed while training, and its networks are gone by then."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import Encoder3d
from torch import Tensor, nn

from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.train import train_batch
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow

OFF = {"cache_conditions": False, "cache_references": False, "cache_prefix": False}
COUNTED = (WanTextEncoder, Encoder3d, WanModel)


class Calls:
    """Counts forward passes by the class of the network, whichever instance makes them; keeps weak references to them."""

    def __init__(self) -> None:
        self.counts = {kind.__name__: 0 for kind in COUNTED}
        self.instances: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def see(self, module: nn.Module, _arguments: object) -> None:
        for kind in COUNTED:
            if type(module) is kind:
                self.counts[kind.__name__] += 1
        if isinstance(module, WanModel):
            self.instances.add(module)


@pytest.fixture
def calls() -> Iterator[Calls]:
    calls = Calls()
    handle = nn.modules.module.register_module_forward_pre_hook(calls.see)
    yield calls
    handle.remove()


def alive(kind: type[nn.Module]) -> set[int]:
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is kind}


def gradients(run: Run) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of row 0 with a LoRA that is not at its start."""
    generator = torch.Generator().manual_seed(5)
    for _, parameter in run.trainable.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    loss, _ = run.feedback.loss(run.preparer(0), visit=0)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in run.trainable.parameters()}  # type: ignore[misc]


def entries(cache_dir: str, kind: str) -> list[Path]:
    return sorted((Path(cache_dir) / ".rewardfl" / "computed" / kind).rglob("*.safetensors"))


@pytest.mark.parametrize(
    "training",
    [{}, {"dtype": "bf16"}, {"mid_timestep": 1}, {"lora_base_model": None, "trainable_models": "vae"}],
    ids=["prefix of three", "bf16", "prefix of one", "the vae is trained"],
)
def test_loss_and_gradient_are_bit_equal_with_and_without_what_is_kept(
    make_config: MakeConfig, process: Process, training: dict[str, object]
) -> None:
    loss_off, gradients_off = gradients(assemble(make_config(name="off", **OFF, **training), process))
    loss_cold, gradients_cold = gradients(assemble(make_config(name="cold", **training), process))
    loss_warm, gradients_warm = gradients(assemble(make_config(name="warm", **training), process))
    assert loss_off == loss_cold == loss_warm
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients_off.values())
    for name, gradient in gradients_off.items():
        assert torch.equal(gradients_cold[name], gradient), name
        assert torch.equal(gradients_warm[name], gradient), name


def test_sample_videos_are_bit_equal_with_and_without_what_is_kept(make_config: MakeConfig, process: Process) -> None:
    videos = [
        assemble(make_config(name=name, num_sample_videos=2, **training), process).sampler.video(1)
        for name, training in (("off", OFF), ("on", {}))
    ]
    assert torch.equal(*videos)


def test_a_second_run_computes_nothing_of_it_again_and_loads_no_network_for_it(
    make_config: MakeConfig, process: Process, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_sample_videos=1)
    assemble(config, process)
    assert calls.counts["WanTextEncoder"] == 2
    assert calls.counts["Encoder3d"] > 0
    calls.counts = dict.fromkeys(calls.counts, 0)
    loaded: list[str] = []
    monkeypatch.setattr("rewardfl_trainer.precompute.fill.load_models", lambda *_: loaded.append("loaded"))
    run = assemble(config, process)
    run.sampler.generate(run.sample_positions, "before")
    train_batch(run, next(run.order.batches()))
    assert loaded == []
    assert calls.counts["WanTextEncoder"] == calls.counts["Encoder3d"] == 0
