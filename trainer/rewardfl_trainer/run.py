"""Puts a run together: data, models, reward, engine and what writes results. `train.py` then only loops.

The order is that of what fails soonest and costs least: output, model files, dataset, faces in first frames, the networks.
"""

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from .checkpoint import Saver
from .collective import on_main
from .conditioning import Conditioner
from .data import MicroBatchSampler, Preflight, VideoDataset, load_rows, preflight
from .engine import ZERO3, Engine
from .environment import Process
from .feedback import RewardFeedback
from .model_files import resolve_model_paths
from .models import DTYPES, load_models
from .preparation import Preparer
from .rewards.face import FaceReward
from .rollout import Rollout
from .samples import Sampler
from .sampling import Plan
from .storage import Storage
from .trainable import Trainable, make_trainable

OUTPUT_FOLDER = "output"
"""Below the work folder: what is uploaded."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """The samples of one optimizer step of this rank."""

    pass_index: int
    """Passes over the dataset done before."""
    positions: list[int]
    """Positions in the dataset."""


@dataclass(frozen=True)
class Order:
    """Which samples are trained on, step by step."""

    sampler: MicroBatchSampler
    parameters: TrainingParameters

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps of a pass over the dataset."""
        return len(self.sampler) // self.parameters.gradient_accumulation_steps * self.parameters.num_train_epochs

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.parameters.max_steps or self.steps_per_pass * self.parameters.dataset_repeat

    def batches(self) -> Iterator[Batch]:
        """Yield the batch of every optimizer step."""
        return itertools.islice(self._endless(), self.total_steps)

    def _endless(self) -> Iterator[Batch]:
        accumulation = self.parameters.gradient_accumulation_steps
        for pass_index in itertools.count():
            micro_batches = self.sampler.batches(pass_index)
            for start in range(0, len(micro_batches), accumulation):
                positions = list(itertools.chain.from_iterable(micro_batches[start : start + accumulation]))
                yield from itertools.repeat(Batch(pass_index, positions), self.parameters.num_train_epochs)


@dataclass(frozen=True)
class Run:
    """Everything that the loop uses."""

    config: TrainerConfig
    process: Process
    order: Order
    trainable: Trainable
    preparer: Preparer
    feedback: RewardFeedback
    engine: Engine
    sampler: Sampler
    saver: Saver
    storage: Storage
    folder: Path
    sample_positions: list[int]


def assemble(config: TrainerConfig, process: Process) -> Run:
    """Return a run, ready for its first step. All sources of `config` are local.

    Raises:
        RewardFLError: the output cannot be written, the dataset is bad, a model is missing, or parameters contradict the models.
    """
    parameters, device = config.training, process.device
    storage = Storage.from_config(config)
    on_main(process, lambda: storage.check_writable(config.output))
    resolve_model_paths(parameters.model_paths or [])
    reward = _load_reward(parameters, process)
    rows = on_main(process, lambda: _check_dataset(config, reward))
    models = load_models(parameters, device)
    plan = Plan.of(parameters)
    conditioner = Conditioner(models, parameters.extra_input_names, DTYPES[parameters.dtype], device)
    trainable = make_trainable(models, parameters, plan)
    order = Order(_micro_batches(rows, parameters, process), parameters)
    engine = Engine(trainable, config, process, order.total_steps)
    rollout = Rollout(models, trainable, plan, parameters)
    dataset = VideoDataset(rows.rows, parameters)
    preparer = Preparer(dataset, conditioner, reward, not trainable.trains_condition, device)
    folder = Path(config.work_dir) / OUTPUT_FOLDER
    partitioned = engine.zero_stage == ZERO3
    return Run(
        config=config,
        process=process,
        order=order,
        trainable=trainable,
        preparer=preparer,
        feedback=RewardFeedback(rollout, conditioner, reward, trainable, parameters),
        engine=engine,
        sampler=Sampler(rollout, preparer, reward, storage, folder, config.output, parameters.seed, process, partitioned),
        saver=Saver(trainable, parameters, storage, folder, config.output, process, partitioned),
        storage=storage,
        folder=folder,
        sample_positions=list(range(min(parameters.num_sample_videos, len(dataset)))),
    )


def _load_reward(parameters: TrainingParameters, process: Process) -> FaceReward:
    """Load the face reward."""
    return FaceReward.load(
        Path(parameters.reward_model_path),
        channel_order=parameters.face_channel_order,
        missing_face_penalty=parameters.missing_face_penalty,
        device=process.device,
    )


def _check_dataset(config: TrainerConfig, reward: FaceReward) -> Preflight:
    """Read the dataset's table and look at every row."""
    result = preflight(load_rows(Path(config.dataset)), config.training, reward)
    for row in result.skipped:
        logger.warning("%s is left out: no face in its first frame", row)
    logger.info("%d rows to train on", len(result.rows))
    return result


def _micro_batches(rows: Preflight, parameters: TrainingParameters, process: Process) -> MicroBatchSampler:
    """Return the order of this rank's micro batches."""
    return MicroBatchSampler(
        rows.sizes,
        batch_size=parameters.per_device_train_batch_size,
        seed=parameters.seed,
        rank=process.rank,
        world_size=process.world_size,
        accumulation=parameters.gradient_accumulation_steps,
    )


def eta_seconds(seconds_per_step: float, steps_left: int) -> float | None:
    """Return the seconds until the end of training; None before there is a rate."""
    return seconds_per_step * steps_left if math.isfinite(seconds_per_step) else None
