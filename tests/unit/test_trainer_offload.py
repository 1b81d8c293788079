"""Tensors that wait in CPU memory: they come back as they were, ahead of their use, and leave nothing behind."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from rewardfl_trainer.memory import Checkpointing
from rewardfl_trainer.offload import Kept, Offload

TENSORS = {
    "bf16": torch.randn(3, 4).bfloat16(),
    "transposed": torch.randn(3, 4).t(),
    "slice": torch.randn(2, 6, 3)[:, 1:4],
    "expanded": torch.randn(1, 4).expand(3, 4),
    "complex": torch.randn(5, dtype=torch.complex128),
    "number": torch.tensor(7.0),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_as_it_was_and_in_memory_of_its_own(name: str) -> None:
    tensor, offload = TENSORS[name], Offload()
    kept = offload.pack(tensor)
    assert kept.host.data_ptr() != tensor.data_ptr()
    for _ in range(2):
        assert torch.equal(offload.unpack(kept), tensor)
        assert kept.fetched is None, "what is in use is the user's alone"


def packed(offload: Offload, count: int) -> list[Kept]:
    return [offload.pack(torch.full((256,), float(number))) for number in range(count)]


def ahead(kept: list[Kept]) -> list[int]:
    return [number for number, one in enumerate(kept) if one.fetched is not None]


def test_what_was_packed_before_is_brought_back_ahead_as_far_as_there_is_room() -> None:
    offload = Offload(ahead_bytes=2 * 1024)
    kept = packed(offload, 6)
    assert ahead(kept) == []
    offload.unpack(kept[5])
    assert ahead(kept) == [3, 4]
    offload.unpack(kept[4])
    assert ahead(kept) == [2, 3]


def test_tensors_of_one_checkpoint_are_unpacked_in_their_own_order() -> None:
    offload = Offload(ahead_bytes=2 * 1024)
    kept = packed(offload, 6)
    for number in (3, 4, 5):
        assert float(offload.unpack(kept[number])[0]) == number
    assert ahead(kept) == [1, 2]


def test_without_room_nothing_is_brought_back_ahead() -> None:
    offload = Offload(ahead_bytes=1000)
    kept = packed(offload, 3)
    offload.unpack(kept[2])
    assert ahead(kept) == []


def test_a_graph_that_was_dropped_unused_is_forgotten() -> None:
    offload = Offload()
    dropped = packed(offload, 3)
    offload.unpack(dropped[2])
    dead = [weakref.ref(one) for one in dropped]
    del dropped
    gc.collect()
    assert [one() for one in dead] == [None] * 3
    kept = packed(offload, 2)
    assert torch.equal(offload.unpack(kept[1]), torch.ones(256))
    assert ahead(kept) == [0]


def test_only_the_arguments_of_a_checkpoint_wait_in_cpu_memory_and_are_gone_after_the_backward_pass() -> None:
    seen: list[weakref.ref[Kept]] = []

    class Seen(Offload):
        def pack(self, tensor: Tensor) -> Kept:
            kept = super().pack(tensor)
            seen.append(weakref.ref(kept))
            return kept

    how = Checkpointing(offload=True, mover=Seen())
    leaf, shared = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    value = leaf
    for _ in range(3):
        value = how.run(lambda x: (x * shared).sin(), value)
    value.sum().backward()
    plain = leaf.detach().requires_grad_()
    other = shared.detach().requires_grad_()
    (((plain * other).sin() * other).sin() * other).sin().sum().backward()
    assert len(seen) == 3
    assert torch.equal(leaf.grad, plain.grad)  # type: ignore[arg-type]
    assert torch.equal(shared.grad, other.grad)  # type: ignore[arg-type]
    del value
    gc.collect()
    assert all(one() is None for one in seen)
