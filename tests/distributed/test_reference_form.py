"""The trainer computes what the straightforward form of the algorithm computes: the same loss, the same gradients.

That form (tests/benchmarks/reference_form.py) keeps nothing, makes all eight steps, decodes in one graph and looks at one frame
at a time. It is also what the benchmark measures against.
"""

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.compat import Tiles
from rewardfl_trainer.environment import Process
from rewardfl_trainer.run import Run, assemble
from tests.benchmarks import reference_form
from tests.benchmarks.reference_form import ReferenceForm
from tests.distributed.conftest import MakeConfig

pytestmark = pytest.mark.slow


def run_of(make_config: MakeConfig, process: Process, *, keeps: bool) -> Run:
    """A run whose LoRA is not at its start, so that there is a KL and lora_A has a gradient."""
    kept = dict.fromkeys(("cache_conditions", "cache_references", "cache_prefix"), keeps)
    run = assemble(make_config(rows=1, name=f"keeps-{keeps}", use_gradient_checkpointing=True, **kept), process)
    for name, parameter in run.trainable.parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(7))
    return run


def gradients(loss: Tensor, run: Run) -> dict[str, Tensor]:
    names, parameters = zip(*run.trainable.parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def test_loss_and_gradients_are_those_of_the_straightforward_form(
    make_config: MakeConfig, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_form, "tiles_for", lambda height, width: Tiles(size=(height, width), stride=(height, width)))
    plain = run_of(make_config, process, keeps=False)
    expected_loss = ReferenceForm.of(plain).loss(0)
    expected = gradients(expected_loss, plain)

    run = run_of(make_config, process, keeps=True)
    loss, outcome = run.feedback.loss(run.preparer(0), visit=0)
    found = gradients(loss, run)

    assert outcome.kl > 1e-3
    assert float(loss.detach()) == pytest.approx(float(expected_loss.detach()), rel=1e-5)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-3, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
