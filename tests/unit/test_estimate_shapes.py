"""Code that runs on shapes: the same forms as on data, every time, and answers where it asks for values."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rewardfl_trainer.estimate import shapes
from rewardfl_trainer.estimate.shapes import META, give_shapes
from rewardfl_trainer.estimate.tracker import Tracker


def test_a_remembered_result_has_the_form_of_the_first_and_memory_of_its_own() -> None:
    x, weight = torch.empty(3, 5, 7, device=META), torch.empty(9, 7, device=META)
    with Tracker("work") as tracker:
        first, second = (functional.gelu(functional.linear(x.transpose(0, 1), weight)) for _ in range(2))
    assert (first.shape, first.stride()) == (second.shape, second.stride()) == ((5, 3, 9), (27, 9, 1))
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert tracker.flops["work", "forward"] == 2 * (2 * 15 * 7 * 9)
    assert tracker.bytes["work"] > 2 * first.nbytes  # both, and the view's copies


def test_a_view_is_never_remembered_as_new_memory() -> None:
    x = torch.empty(4, 6, device=META)
    for _ in range(2):
        with Tracker("work"):
            views = [x.view(24), x.t(), x[1:], torch.ops.aten._unsafe_view(x, [24])]
        assert {view.untyped_storage()._cdata for view in views} == {x.untyped_storage()._cdata}


def test_numbers_of_another_type_are_another_operation() -> None:
    with Tracker("work"):
        kinds = [torch.full((2,), value, device=META).dtype for value in (1, 1.0, True)]
        x = torch.ones(2, dtype=torch.int64, device=META)
        added = [(x + value).dtype for value in (1, 1.0, True)]
    assert kinds == [torch.int64, torch.float32, torch.bool]
    assert added == [torch.int64, torch.float32, torch.int64]


def test_values_are_answered_with_ones() -> None:
    x = torch.empty(2, 3, device=META)
    with Tracker("work"):
        assert bool(x[0, 0] > 0)
        assert float(x.mean()) == 1.0
        assert x.long().sum().item() == 1
        assert x[0].tolist() == [1.0, 1.0, 1.0]
        assert x.nonzero().shape == (6, 2)
        assert torch.empty(shapes.MAX_ANSWERED + 1, device=META).cpu().is_meta


def test_real_tensors_beside_shapes_are_shapes() -> None:
    with Tracker("work"):
        assert (torch.empty(2, 3, device=META) + torch.ones(3)).is_meta
        assert torch.equal(torch.ones(2) + torch.ones(2), torch.full((2,), 2.0))
        with pytest.raises(RuntimeError):
            torch.empty(2, 3, device=META) @ torch.empty(2, 3, device=META)


class Constants(nn.Module):
    """Has a weight, a table that it keeps beside its buffers, and a size that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3), requires_grad=False)
        self.table = (torch.ones(4, 3), "name")
        self.register_buffer("size", torch.tensor([2, 3]))

    def forward(self, x: Tensor) -> Tensor:
        """Use all of them."""
        result: Tensor = (x * self.weight + self.table[0][:2]).reshape(tuple(self.size.tolist()))  # type: ignore[operator]
        return result


def test_a_module_on_shapes_keeps_what_it_reads_and_no_weights() -> None:
    module = give_shapes(Constants())
    assert module.weight.is_meta
    assert not module.weight.requires_grad  # type: ignore[union-attr]
    with Tracker("work"):
        assert module(torch.empty(2, 3, device=META)).shape == (2, 3)
    assert module.table[0].is_meta  # type: ignore[index,union-attr]
    assert module.table[1] == "name"  # type: ignore[index]


@pytest.mark.parametrize("grad", [False, True])
def test_attention_to_shapes_holds_what_the_cpus_kernel_holds(grad: bool) -> None:
    found = []
    for device in (META, torch.device("cpu")):
        with shapes.shapes(), Tracker("work") as tracker:
            q = torch.empty(1, 2, 64, 16, device=device, requires_grad=grad)
            attended = functional.scaled_dot_product_attention(q, q, q)
            if grad:
                attended.sum().backward()  # type: ignore[no-untyped-call]
        found.append((tracker.peak.total, dict(tracker.flops)))
    assert found[0] == found[1]
