"""The order in which rows are trained on."""

from collections import Counter

import pytest

from rewardfl_trainer.data import MicroBatchSampler

SIZES = [(64, 64)] * 7 + [(32, 64)] * 4 + [(64, 32)]
GOLDEN = [7, 11, 8, 6, 2, 4, 10, 1, 9, 0, 5, 3]
"""The first pass of these with seed 42."""


def test_a_micro_batch_never_mixes_shapes() -> None:
    batches = MicroBatchSampler(SIZES, batch_size=3, seed=1).batches(0)

    assert all(len(batch) == 3 for batch in batches)
    assert all(len({SIZES[position] for position in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_row_is_trained_on_in_every_pass(batch_size: int) -> None:
    sampler = MicroBatchSampler(SIZES, batch_size=batch_size, seed=1)

    for pass_index in range(3):
        assert {position for batch in sampler.batches(pass_index) for position in batch} == set(range(len(SIZES)))


def test_with_one_row_a_micro_batch_no_row_comes_twice() -> None:
    counts = Counter(position for (position,) in MicroBatchSampler(SIZES, batch_size=1, seed=1).batches(0))

    assert set(counts.values()) == {1}


def test_each_pass_has_its_own_order_and_the_seed_decides_it() -> None:
    sampler = MicroBatchSampler(SIZES, batch_size=1, seed=1)

    assert sampler.batches(0) == MicroBatchSampler(SIZES, batch_size=1, seed=1).batches(0)
    assert sampler.batches(0) != sampler.batches(1)
    assert sampler.batches(0) != MicroBatchSampler(SIZES, batch_size=1, seed=2).batches(0)


def test_the_order_stays_the_same_between_versions() -> None:
    """A resumed run relies on it."""
    assert [position for (position,) in MicroBatchSampler(SIZES, batch_size=1, seed=42).batches(0)] == GOLDEN


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_global_order_is_the_same_at_every_world_size(world_size: int, accumulation: int) -> None:
    ranks = [
        MicroBatchSampler(SIZES, batch_size=2, seed=5, rank=rank, world_size=world_size, accumulation=accumulation)
        for rank in range(world_size)
    ]
    shares = [sampler.batches(3) for sampler in ranks]

    woven = [batch for together in zip(*shares, strict=True) for batch in together]

    alone = MicroBatchSampler(SIZES, batch_size=2, seed=5).global_batches(3)
    assert woven[: len(alone)] == alone
    padding = woven[len(alone) :]
    assert padding == [alone[number % len(alone)] for number in range(len(padding))]
    assert len(padding) < world_size * accumulation
    assert [len(share) for share in shares] == [len(sampler) for sampler in ranks]
    assert len(ranks[0]) % accumulation == 0


def test_fewer_rows_than_ranks_still_give_every_rank_its_share() -> None:
    shares = [MicroBatchSampler([(64, 64)], batch_size=2, seed=0, rank=rank, world_size=4).batches(0) for rank in range(4)]

    assert shares == [[[0, 0]]] * 4
