"""The memory preflight on CUDA devices: their sizes are made up, everything else is what runs before training."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed

from rewardfl_api.deepspeed import DeepSpeedPreset, preset_config
from rewardfl_api.errors import ExitCode, RewardFLError
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer import collective
from rewardfl_trainer.environment import Process
from rewardfl_trainer.estimate import preflight
from rewardfl_trainer.estimate.fit import GPU_BYTES
from rewardfl_trainer.estimate.networks import a14b
from rewardfl_trainer.estimate.preflight import check_memory
from rewardfl_trainer.estimate.reference import A14B_PARAMETERS
from rewardfl_trainer.estimate.result import Estimator
from tests.unit.test_estimate_count import family
from tests.unit.test_estimate_result import Fixed, configuration

MIG_BYTES = 20.9e9
"""A slice of an H100: 2g.20gb."""

Sized = Callable[..., None]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> Sized:
    """A function that gives the visible devices their bytes, in order."""

    def give(*sizes: float) -> None:
        found = [SimpleNamespace(total_memory=int(size)) for size in sizes]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found[torch.device(device).index])

    return give


def process(device: int = 0, rank: int = 0, world_size: int = 1) -> Process:
    return Process(rank, world_size, torch.device("cuda", device))


def a14b_run(preset: DeepSpeedPreset = "zero0", *, offload: bool = False) -> TrainerConfig:
    training = TrainingParameters.model_validate({**A14B_PARAMETERS, "use_gradient_checkpointing_offload": offload})
    return TrainerConfig(dataset="/data", output="/results", device="cuda", training=training, deepspeed=preset_config(preset))


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_a14b_is_refused_or_let_through_by_the_size_of_the_gpu(
    monkeypatch: pytest.MonkeyPatch, sized: Sized, caplog: pytest.LogCaptureFixture
) -> None:
    counted = Estimator(a14b())
    monkeypatch.setattr(preflight.Estimator, "of", lambda _parameters: counted)
    for size in (80, 141):
        sized(GPU_BYTES[size])
        with caplog.at_level(logging.INFO):
            check_memory(a14b_run(), process())
        assert [record.levelname for record in caplog.records] == ["INFO"]
        caplog.clear()
    sized(GPU_BYTES[48])
    with pytest.raises(
        RewardFLError, match=r"72\.\d GB of GPU memory are needed \(backward pass through the tr.*47\.6 GB"
    ) as refused:
        check_memory(a14b_run(), process())
    assert refused.value.exit_code == ExitCode.BAD_CONFIGURATION
    for size in (GPU_BYTES[24], MIG_BYTES):
        sized(size)
        with pytest.raises(RewardFLError) as refused:
            check_memory(a14b_run("zero3_cpuoffload", offload=True), process())
        assert refused.value.hint == "Use fewer frames or pixels, or a larger GPU."


@pytest.mark.usefixtures("group")
def test_the_settings_that_a_refusal_names_are_let_through(monkeypatch: pytest.MonkeyPatch, sized: Sized) -> None:
    monkeypatch.setattr(preflight.Estimator, "of", lambda _parameters: Fixed(family(1)))
    sized(48e9)
    with pytest.raises(RewardFLError) as refused:
        check_memory(configuration(), process())
    assert refused.value.hint == "These settings fit: deepspeed.preset zero0, use_gradient_checkpointing_offload."
    changed = configuration(use_gradient_checkpointing_offload=True)
    check_memory(changed.model_copy(update={"deepspeed": preset_config("zero0")}), process())


@pytest.mark.usefixtures("group")
def test_of_several_visible_devices_its_own_is_looked_at(monkeypatch: pytest.MonkeyPatch, sized: Sized) -> None:
    monkeypatch.setattr(preflight.Estimator, "of", lambda _parameters: Fixed(family(1)))
    sized(8e9, 8e9, 150e9, 8e9)
    check_memory(configuration(), process(device=2))
    with pytest.raises(RewardFLError, match=r"there are 8\.0 GB"):
        check_memory(configuration(), process(device=3))


class Unwilling(Fixed):
    """An estimator of a run with a reward that wants real data."""

    def estimate(self, *_: object, **__: object) -> object:  # type: ignore[override]
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")


@pytest.mark.usefixtures("group")
def test_what_cannot_be_estimated_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, sized: Sized, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight.Estimator, "of", lambda _parameters: Unwilling(family(1)))
    sized(24e9)
    with caplog.at_level(logging.INFO):
        check_memory(configuration(), process())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no data!" in caplog.records[0].message


def run_rank(rank: int, sizes: list[float], folder: Path) -> None:
    """One of two ranks, each with a GPU of its own: writes how often it estimated, and what it was told."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=len(sizes))
    calls = []

    def of(_parameters: TrainingParameters) -> Fixed:
        calls.append(rank)
        return Fixed(family(1))

    preflight.Estimator.of = of  # type: ignore[assignment,method-assign]
    torch.cuda.get_device_properties = lambda _device: SimpleNamespace(total_memory=int(sizes[rank]))  # type: ignore[assignment]
    try:
        check_memory(configuration(), process(rank, rank, len(sizes)))
        outcome = "passed"
    except RewardFLError as error:
        outcome = str(error)
    (folder / f"rank{rank}").write_text(f"{len(calls)} {outcome}")
    distributed.barrier()
    os._exit(0)


@pytest.mark.parametrize(("sizes", "outcome"), [([150e9, 150e9], "passed"), ([150e9, 48e9], "there are 48.0 GB")])
def test_one_rank_estimates_for_all_and_the_smallest_gpu_decides(tmp_path: Path, sizes: list[float], outcome: str) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(rank, sizes, tmp_path)) for rank in range(len(sizes))]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    told = [(tmp_path / f"rank{rank}").read_text().split(" ", 1) for rank in range(len(sizes))]
    assert [calls for calls, _ in told] == ["1", "0"]
    assert all(outcome in text for _, text in told)


@pytest.mark.usefixtures("group")
def test_the_smallest_value_of_one_rank_is_its_own() -> None:
    assert collective.smallest(process(), 7) == 7
