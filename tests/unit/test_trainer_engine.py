"""The optimizer, its schedules, DeepSpeed's section, and the order of steps."""

import json
import math
import re
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import SchedulerType

from rewardfl_api.deepspeed import preset_config
from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.parameters import LrSchedulerType
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.data import MicroBatchSampler
from rewardfl_trainer.engine import check_section, deepspeed_section, fitting_buckets
from rewardfl_trainer.optimizer import (
    GuardedAdamW,
    advance_schedule,
    make_optimizer,
    make_schedule,
    restore_schedule,
    schedule_state,
)
from rewardfl_trainer.order import Order
from tests.unit.datasets import parameters

TYPES = [kind.value for kind in SchedulerType]
FROM_A_PART = "cosine_warmup_with_min_lr"
"""Its first step is one of warmup_steps parts of the learning rate; the others' is 0."""


def rates(steps: int = 20, losses: tuple[float, ...] = (1.0,), **changes: object) -> list[float]:
    given = parameters(learning_rate=1e-3, **changes)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], given, offloaded=False)
    schedule = make_schedule(optimizer, given, steps)
    result = []
    for step in range(steps + 1):
        result.append(optimizer.param_groups[0]["lr"])
        assert schedule.get_last_lr() == result[-1:]
        optimizer.step()
        advance_schedule(schedule, losses[step % len(losses)])
    return result


def test_every_name_of_transformers_is_known_and_no_other() -> None:
    assert set(get_args(LrSchedulerType)) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_every_schedule_warms_up_to_the_learning_rate(name: str) -> None:
    values = rates(lr_scheduler_type=name, warmup_steps=5)
    first = 2e-4 if name == FROM_A_PART else 0
    assert values[0] == first
    assert values[:5] == pytest.approx([first + number * 2e-4 for number in range(5)])
    assert max(values) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "half", "end"),
    [
        ("linear", 5e-4, 0),
        ("cosine", 5e-4, 0),
        ("cosine_with_restarts", 5e-4, 0),
        ("polynomial", 5e-4, 1e-7),
        ("constant", 1e-3, 1e-3),
        ("constant_with_warmup", 1e-3, 1e-3),
        ("inverse_sqrt", 1e-3, 1e-3),  # over 10,000 steps
        ("cosine_with_min_lr", 5.5e-4, 1e-4),
        (FROM_A_PART, 4.8e-4, 1e-4),
        ("warmup_stable_decay", 1e-3, 0),
        ("reduce_lr_on_plateau", 1e-3, 1e-4),
        ("greedy", 1e-3, 9.5e-4),
    ],
)
def test_schedules_without_warmup_end_at_their_end(name: str, half: float, end: float) -> None:
    values = rates(lr_scheduler_type=name, warmup_steps=0)
    assert values[0] == pytest.approx(1e-3, rel=0.01)
    assert values[10] == pytest.approx(half, abs=2e-5)
    assert values[20] == pytest.approx(end, abs=1e-5)


@pytest.mark.parametrize(("losses", "end"), [((1.0,), 1e-4), (tuple(range(900, 0, -1)), 1e-3)], ids=["still", "falling"])
def test_greedy_stays_between_a_tenth_of_the_learning_rate_and_itself(losses: tuple[float, ...], end: float) -> None:
    values = rates(900, losses, lr_scheduler_type="greedy", warmup_steps=0)
    assert min(values) >= 1e-4
    assert max(values) == 1e-3
    assert values[650] == pytest.approx(end)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("learning_rate", [0.0, 5e-8])
def test_every_schedule_can_be_made_of_any_learning_rate(name: str, learning_rate: float) -> None:
    given = parameters(learning_rate=learning_rate, lr_scheduler_type=name, warmup_steps=2)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], given, offloaded=False)
    schedule = make_schedule(optimizer, given, 10)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        advance_schedule(schedule, 1.0)
    assert max(found) == pytest.approx(learning_rate)
    assert min(found) >= 0


def test_adamw_gets_its_parameters() -> None:
    given = parameters(learning_rate=1e-3, weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    group = make_optimizer([nn.Parameter(torch.zeros(1))], given, offloaded=True).param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (1e-3, 0.1, (0.8, 0.9), 1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_weight_decay_shrinks_the_weights_by_itself(weight_decay: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    make_optimizer([weight], parameters(learning_rate=0.1, weight_decay=weight_decay), offloaded=False).step()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 * weight_decay))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = GuardedAdamW([first, second], lr=0.1)
    first.grad, second.grad = torch.ones(2), torch.tensor([1.0, bad])
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(first, torch.ones(2))
    second.grad = torch.ones(2)
    optimizer.step()
    assert not optimizer.overflow
    assert not torch.equal(first, torch.ones(2))


def config(deepspeed: dict[str, object] | None = None, **changes: object) -> TrainerConfig:
    given: dict[str, object] = {"training": parameters(**changes), "dataset": "/data", "output": "/out", "device": "cpu"}
    if deepspeed is not None:
        given["deepspeed"] = deepspeed
    return TrainerConfig.model_validate(given)


def test_batch_sizes_and_clipping_go_into_deepspeeds_section() -> None:
    given = config(per_device_train_batch_size=2, gradient_accumulation_steps=3, max_grad_norm=0.5)
    section = deepspeed_section(given, world_size=4, full=False)
    assert section["train_micro_batch_size_per_gpu"] * section["gradient_accumulation_steps"] * 4 == 24
    assert section["train_batch_size"] == 24
    assert section["gradient_clipping"] == 0.5


@pytest.mark.parametrize(("full", "dtype", "bf16"), [(False, "bf16", False), (True, "bf16", True), (True, "fp32", False)])
def test_only_full_training_in_bf16_leaves_the_masters_to_deepspeed(full: bool, dtype: str, bf16: bool) -> None:
    assert deepspeed_section(config(dtype=dtype), world_size=1, full=full)["bf16"] == {"enabled": bf16}


def test_what_the_training_parameters_say_is_not_taken_from_deepspeeds_section() -> None:
    section = deepspeed_section(config({"optimizer": {"type": "SGD"}, "train_batch_size": 7}), world_size=1, full=False)
    assert "optimizer" not in section
    assert section["train_batch_size"] == 1


@pytest.mark.parametrize(
    ("stage", "offload", "expected"),
    [
        (0, {"offload_optimizer": {"device": "cpu"}}, r"offload_optimizer\.device=cpu: needs stage 1 or higher; stage is 0"),
        (2, {"offload_param": {"device": "cpu"}}, r"offload_param\.device=cpu: needs stage 3 or higher; stage is 2"),
        (3, {"offload_param": {"device": "nvme"}}, r"offload_param\.device=nvme: is not supported; use cpu"),
    ],
)
def test_what_deepspeed_cannot_offload_is_refused_by_its_name(stage: int, offload: dict[str, Any], expected: str) -> None:
    with pytest.raises(RewardFLError, match=expected) as caught:
        check_section(config({"zero_optimization": {"stage": stage, **offload}}), world_size=1)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        (True, r"deepspeed: zero_optimization=True: must be an object, e\.g\. stage: 2"),
        (None, "zero_optimization=None: must be an object"),
        ({"stage": "x"}, r"zero_optimization\.stage='x': must be a whole number from 0 to 3"),
        ({"stage": 4}, r"stage=4: must be a whole number from 0 to 3"),
        ({"stage": True}, r"stage=True: must be a whole number"),
        ({"stage": 2, "reduce_bucket_size": "5e8"}, r"reduce_bucket_size='5e8': must be a whole number from 1$"),
        ({"stage": 3, "stage3_max_live_parameters": 1.5}, r"stage3_max_live_parameters=1\.5: must be a whole number from 0$"),
        ({"stage": 3, "offload_param": "cpu"}, r"offload_param='cpu': must be an object, e\.g\. device: cpu"),
    ],
)
def test_a_section_about_zero_of_the_wrong_form_is_refused_by_its_name(zero: Any, expected: str) -> None:
    with pytest.raises(RewardFLError) as caught:
        check_section(config({"zero_optimization": zero}), world_size=1)
    assert re.search(expected, caught.value.message)
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION


def test_automatic_values_and_an_offload_of_null_are_deepspeeds_defaults() -> None:
    given = {"stage": 2, "reduce_bucket_size": "auto", "offload_optimizer": None, "allgather_bucket_size": 5e8}
    section = deepspeed_section(config({"zero_optimization": given}), world_size=1, full=False)
    assert section["zero_optimization"] == {"stage": 2, "allgather_bucket_size": 5e8}
    assert fitting_buckets(section, 1000)["zero_optimization"]["reduce_bucket_size"] == 1000


def test_offload_on_a_cpu_asks_for_no_pinned_memory() -> None:
    section = deepspeed_section(config(preset_config("zero3_cpuoffload")), world_size=1, full=False)
    assert section["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}


def test_a_train_batch_size_that_is_not_the_product_is_refused_with_the_three_numbers() -> None:
    given = config(train_batch_size=7, per_device_train_batch_size=2, gradient_accumulation_steps=3)
    with pytest.raises(RewardFLError, match=r"train_batch_size=7: .*size 2 \* .*steps 3 \* world size 4 = 24") as caught:
        deepspeed_section(given, world_size=4, full=False)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)


def order(rows: int, rank: int = 0, world_size: int = 1, **changes: object) -> Order:
    given = parameters(**changes)
    sampler = MicroBatchSampler(
        [(64, 64)] * rows,
        batch_size=given.per_device_train_batch_size,
        seed=given.seed,
        rank=rank,
        world_size=world_size,
        accumulation=given.gradient_accumulation_steps,
    )
    return Order(sampler, given)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 8),
        ({"dataset_repeat": 3}, 24),
        ({"num_train_epochs": 2}, 16),
        ({"per_device_train_batch_size": 2}, 4),
        ({"gradient_accumulation_steps": 4}, 2),
        ({"max_steps": 5}, 5),
        ({"max_steps": 50}, 50),
    ],
)
def test_total_steps_follow_from_passes_rounds_and_batch(changes: dict[str, int], steps: int) -> None:
    made = order(8, **changes)
    assert made.total_steps == steps
    assert len(list(made.batches())) == steps


def test_every_world_size_of_a_global_batch_trains_on_the_same_samples_in_the_same_steps() -> None:
    alone = [sorted(batch.positions) for batch in order(8, gradient_accumulation_steps=4).batches()]
    ranks = [[batch.positions for batch in order(8, rank, 4).batches()] for rank in range(4)]
    together = [sorted(position for rank in ranks for position in rank[step]) for step in range(len(alone))]
    assert together == alone


def test_rounds_repeat_a_batch_in_a_row_and_passes_reshuffle() -> None:
    batches = list(order(8, num_train_epochs=2, dataset_repeat=2).batches())
    assert all(batches[step].positions == batches[step + 1].positions for step in range(0, 32, 2))
    first, second = ([batch.positions[0] for batch in batches if batch.pass_index == index][::2] for index in (0, 1))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dataset_repeat": 3},
        {"num_train_epochs": 3, "dataset_repeat": 2},
        {"gradient_accumulation_steps": 3, "max_steps": 11},
        {"per_device_train_batch_size": 3, "dataset_repeat": 2},
    ],
)
def test_from_every_position_on_the_batches_are_those_of_an_unbroken_run(changes: dict[str, int]) -> None:
    whole = order(8, 1, 2, **changes)
    batches = list(whole.batches())
    for number, batch in enumerate(batches, start=1):
        rest = replace(whole, start=batch.end)
        assert (batch.end.step, rest.total_steps) == (number, whole.total_steps)
        assert list(rest.batches()) == batches[number:]


def test_a_position_of_four_ranks_is_gone_on_from_with_one() -> None:
    four = [list(order(16, rank, 4, dataset_repeat=2).batches()) for rank in range(4)]
    alone = replace(order(16, gradient_accumulation_steps=4, dataset_repeat=2), start=four[0][2].end)
    rest = [sorted(batch.positions) for batch in alone.batches()]
    assert rest == [sorted(position for rank in four for position in rank[step].positions) for step in range(3, 8)]
    assert alone.total_steps == 8


def test_a_global_batch_of_another_size_leaves_no_sample_out() -> None:
    three = list(order(12, 0, 3).batches())
    larger = replace(order(12, gradient_accumulation_steps=4), start=three[0].end)
    assert sorted(position for batch in larger.batches() for position in batch.positions) == list(range(12))
    assert larger.total_steps == 1 + 3


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("done", [2, 17])
def test_a_schedule_goes_on_where_it_was(name: str, done: int) -> None:
    given = parameters(learning_rate=1e-3, lr_scheduler_type=name, warmup_steps=3)

    def made() -> LRScheduler:
        return make_schedule(make_optimizer([nn.Parameter(torch.zeros(1))], given, offloaded=False), given, 40)

    def steps(schedule: LRScheduler, numbers: range) -> list[float]:
        rates = []
        for number in numbers:
            schedule.optimizer.step()
            advance_schedule(schedule, 1.0 + number % 2)
            rates.append(schedule.optimizer.param_groups[0]["lr"])
        return rates

    first, second = made(), made()
    steps(first, range(done))
    restore_schedule(second, json.loads(json.dumps(schedule_state(first))))
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"]
    assert steps(first, range(done, 40)) == steps(second, range(done, 40))


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("done", "rate"), [(1, 2.5e-4), (7, 1e-3)])
def test_a_schedule_that_watches_the_loss_may_follow_one_that_does_not(name: str, done: int, rate: float) -> None:
    before, after = (parameters(learning_rate=1e-3, lr_scheduler_type=kind, warmup_steps=4) for kind in ("linear", name))
    first, second = (
        make_schedule(make_optimizer([nn.Parameter(torch.zeros(1))], p, offloaded=False), p, 10) for p in (before, after)
    )
    for _ in range(done):
        first.optimizer.step()
        first.step()
    restore_schedule(second, schedule_state(first))
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(rate)


def test_a_resumed_schedule_follows_a_changed_learning_rate() -> None:
    before, after = (parameters(learning_rate=rate, lr_scheduler_type="linear", warmup_steps=0) for rate in (1e-3, 1e-4))
    first, second = (
        make_schedule(make_optimizer([nn.Parameter(torch.zeros(1))], p, offloaded=False), p, 10) for p in (before, after)
    )
    for _ in range(5):
        first.optimizer.step()
        first.step()
    restore_schedule(second, schedule_state(first))
    assert second.optimizer.param_groups[0]["lr"] == pytest.approx(5e-5)
