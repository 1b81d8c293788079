"""Puts a run together: data, models, reward, engine and what writes results. `train.py` then only loops.

The order is that of what fails soonest and costs least: output, model files, dataset, faces in first frames, the networks.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rewardfl_api.guard import GuardTrip
from rewardfl_api.progress import Checkpoint, Results
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_api.training import TrainingParameters

from . import random_state
from .checkpoint import Saver
from .collective import on_main
from .compat import Conventions
from .conditioning import Conditioner, check_inputs
from .data import MicroBatchSampler, VideoDataset
from .engine import ZERO3, Engine, check_section
from .environment import Process
from .evaluation import Evaluation, Split, split_rows
from .feedback import RewardFeedback
from .finished import finished_results
from .identity import Identity, Rows
from .lora import check_targets
from .models import DTYPES, FoundModels, check_tokenizer, find_models, load_models
from .order import Order, Position
from .precompute.digests import Digests
from .precompute.fill import FirstPhase, Report, Wanted
from .precompute.keys import Keys
from .precompute.phases import Phases
from .precompute.store import Store
from .preparation import Kept, Preparer
from .resume import Found, find, restore, restore_metrics
from .rewards.composition import Rewards
from .rollout import Rollout
from .samples import SAMPLE_DRAW, Sampler
from .sampling import Plan
from .storage import Storage
from .timeline import Timeline
from .timing import Stopwatch
from .trainable import Trainable, check_reached, make_trainable
from .uploads import CHECKPOINTS_FOLDER, Uploads, abort_interrupted
from .watcher import Watcher, check_tellable

OUTPUT_FOLDER = "output"
"""Below the work folder: what is uploaded."""

logger = logging.getLogger(__name__)


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
    stopwatch: Stopwatch
    """Counts the seconds of a step by part."""
    resumed: Found | None
    """The checkpoint that it goes on from."""
    evaluation: Evaluation
    timeline: Timeline
    """Counts the seconds of the run by phase."""
    watcher: Watcher
    """Its guard, and what is known of its best evaluation."""


class AlreadyDoneError(Exception):
    """Every step was made by an earlier start, or the guard has stopped it, and its results are in `output`."""

    def __init__(self, step: int, total_steps: int, results: Results, trip: GuardTrip | None = None) -> None:
        super().__init__(f"all {step} steps are done" if trip is None else f"the guard stopped the run after step {step}")
        self.step, self.total_steps, self.results, self.trip = step, total_steps, results, trip


def assemble(
    config: TrainerConfig,
    process: Process,
    report: Report = logger.info,
    written: TrainerConfig | None = None,
    stopwatch: Stopwatch | None = None,
    timeline: Timeline | None = None,
) -> Run:
    """Return a run, ready for its next step: the first, or the one after the newest checkpoint of its output.

    The first phase (`precompute/`) runs in here: its networks are gone before those of training are loaded.

    Args:
        config: what to train. All its sources are local.
        process: this rank.
        report: is told what goes on, on the main rank.
        written: the configuration as the user wrote it, which checkpoints are bound to. None: the same.
        stopwatch: counts the seconds by part. None: a new one.
        timeline: counts those of the run by phase. None: a new one.

    Raises:
        RewardFLError: the output cannot be written, the dataset is bad, a model is missing, parameters contradict the models, or
            the checkpoint in the output is one of other parameters.
        AlreadyDoneError: nothing is left to do.
    """
    parameters, device = config.training, process.device
    checked = _check(config, process, written or config)
    rows, plan, order, resumed = checked.rows, checked.plan, checked.order, checked.resumed
    folder, storage, reward = checked.folder, checked.storage, checked.reward
    dataset = VideoDataset(rows.rows, parameters)
    sample_positions = list(range(min(parameters.num_sample_videos, rows.num_trained)))
    phases = Phases.of(parameters, plan)
    kept = None
    if phases.keeps_anything:
        kept = _kept(config, checked, phases, device)
        wanted = wanted_starts(order, sample_positions) | wanted_evaluation(rows, parameters)
        FirstPhase(parameters, checked.found, plan, dataset, reward, kept, process, report).run(wanted)
    models = load_models(parameters, device, checked.found, phases.training_networks, encoder=phases.encodes_in_training)
    conditioner = None
    if phases.encodes_in_training:
        conditioner = Conditioner(models, parameters.extra_input_names, DTYPES[parameters.dtype], device)
    trainable = make_trainable(models, parameters, plan)
    stopwatch = stopwatch or Stopwatch(device)
    engine = Engine(trainable, config, process, order.total_steps, stopwatch)
    rollout = Rollout(models, trainable, plan, parameters, stopwatch)
    preparer = Preparer(dataset, conditioner, reward, parameters, device, kept)
    partitioned = engine.zero_stage == ZERO3
    uploads = Uploads(storage, config.output, parameters.save_total_limit)
    if resumed is None:
        random_state.seed(parameters.seed, process)
    else:
        _go_on(resumed, engine, uploads, process, folder, checked.watcher)
    sampler = Sampler(rollout, preparer, reward, uploads, folder, process, partitioned)
    identity = checked.identity
    return Run(
        config=config,
        process=process,
        order=order,
        trainable=trainable,
        preparer=preparer,
        feedback=RewardFeedback(rollout, preparer, reward, trainable, parameters),
        engine=engine,
        sampler=sampler,
        saver=Saver(trainable, engine, parameters, storage, uploads, folder, config.output, identity, process, partitioned),
        storage=storage,
        folder=folder,
        sample_positions=sample_positions,
        stopwatch=stopwatch,
        resumed=resumed,
        evaluation=Evaluation.of(parameters, sampler, rows, order.total_steps, resumed.state.held_out if resumed else {}),
        timeline=timeline or Timeline(),
        watcher=checked.watcher,
    )


@dataclass(frozen=True)
class _Checked:
    """What is known of a run before any of its networks is loaded, but for those of the reward."""

    folder: Path
    storage: Storage
    found: FoundModels
    plan: Plan
    reward: Rewards
    rows: Split
    identity: Identity
    resumed: Found | None
    order: Order
    watcher: Watcher


def _check(config: TrainerConfig, process: Process, written: TrainerConfig) -> _Checked:
    """Look at everything that can be wrong: what fails soonest and costs least comes first. A collective call."""
    parameters = config.training
    folder = Path(config.work_dir) / OUTPUT_FOLDER
    check_section(config, process.world_size)
    storage = Storage.from_config(config)
    on_main(process, lambda: storage.check_writable(config.output))
    on_main(process, lambda: abort_interrupted(storage, config.output))
    found = find_models(parameters)
    check_tokenizer(parameters.tokenizer_path)
    plan, dit = Plan.of(parameters), found.empty_dit()
    check_inputs(parameters.extra_input_names, dit.in_dim)
    check_reached(parameters.trainable_model_names, plan)
    if parameters.lora_base_model is not None:
        check_targets(dit, parameters)
    reward = Rewards.load(parameters, process.device)
    rows = on_main(process, lambda: split_rows(config, reward.face_finder))
    _check_memory(config, process)
    check_tellable(config.guard, len(rows.evaluation_positions) * parameters.eval_noise_seeds)
    identity = Identity.of(written, rows.trained_rows, Path(config.dataset), _held_out(rows, config))
    resumed = on_main(process, lambda: find(storage, folder, identity))
    order = Order(_micro_batches(rows, parameters, process), parameters, resumed.position if resumed else Position())
    watcher = Watcher.of(config.guard, resumed.state if resumed else None, identity, process, order.total_steps)
    if resumed is not None:
        _check_not_done(order, storage, config.output, process, watcher)
    return _Checked(folder, storage, found, plan, reward, rows, identity, resumed, order, watcher)


def _held_out(rows: Split, config: TrainerConfig) -> Rows | None:
    """Return the identity of what is evaluated on."""
    return Rows.of(rows.evaluation_rows, Path(config.training.eval_dataset or config.dataset)) if rows.evaluation_rows else None


def _kept(config: TrainerConfig, checked: _Checked, phases: Phases, device: torch.device) -> Kept:
    """Return what is kept on disk."""
    store = Store(Path(config.cache_dir))
    digests = Digests(store.digests_folder)
    keys = Keys(config.training, checked.plan, phases, checked.found, digests, device.type)
    return Kept(store, keys, phases, checked.rows.sizes)


def _check_not_done(order: Order, storage: Storage, output: str, process: Process, watcher: Watcher) -> None:
    """Raise where an earlier start has made all steps, or was stopped, and has written the results. A collective call."""
    step, total = order.start.step, order.total_steps
    if step != total and not watcher.has_ended:
        return
    results = on_main(process, lambda: finished_results(storage, output, step))
    if results is not None:
        raise AlreadyDoneError(step, total, results, watcher.trip)


def _go_on(found: Found, engine: Engine, uploads: Uploads, process: Process, folder: Path, watcher: Watcher) -> None:
    """Put everything that a run has into the state of the checkpoint."""
    restore(found, engine, process)
    if process.is_main:
        restore_metrics(found, folder)
        if found.uploaded:
            uploads.uploaded = Checkpoint(step=found.position.step, uri=found.uri, time=found.time)
        else:
            uploads.submit(found.folder, found.position.step, watcher.best)
    watcher.best = on_main(process, lambda: uploads.recall_best(watcher.best, folder / CHECKPOINTS_FOLDER))
    logger.info("goes on after step %d, from %s", found.position.step, found.uri)


def wanted_starts(order: Order, sample_positions: Sequence[int]) -> set[Wanted]:
    """Return every start that this rank will ask for."""
    draws, everything = (
        order.parameters.noise_seeds_per_sample,
        len(order.sampler.sizes) * order.parameters.noise_seeds_per_sample,
    )
    trained: set[Wanted] = set()
    for batch in order.batches():
        trained.update(Wanted(position, batch.visit % draws, "train") for position in batch.positions)
        if len(trained) == everything:
            break
    return trained | {Wanted(position, SAMPLE_DRAW, "sample") for position in sample_positions}


def wanted_evaluation(rows: Split, parameters: TrainingParameters) -> set[Wanted]:
    """Return every start that the held-out reward will ask for."""
    draws = range(parameters.eval_noise_seeds)
    return {Wanted(position, draw, "sample") for position in rows.evaluation_positions for draw in draws}


def _check_memory(config: TrainerConfig, process: Process) -> None:
    """Compare what the run needs with the GPUs. On CPUs nothing is estimated. A collective call."""
    if process.device.type == "cuda":
        from .estimate.preflight import check_memory  # noqa: PLC0415 - takes seconds, and is not needed on a CPU

        check_memory(config, process)


def _micro_batches(rows: Split, parameters: TrainingParameters, process: Process) -> MicroBatchSampler:
    """Return the order of this rank's micro batches."""
    return MicroBatchSampler(
        rows.trained_sizes,
        batch_size=parameters.per_device_train_batch_size,
        seed=parameters.seed,
        rank=process.rank,
        world_size=process.world_size,
        accumulation=parameters.gradient_accumulation_steps,
        shuffle=Conventions.of(parameters).shuffle,
    )


def eta_seconds(seconds_per_step: float, steps_left: int) -> float | None:
    """Return the seconds until the end of training; None before there is a rate."""
    return seconds_per_step * steps_left if math.isfinite(seconds_per_step) else None
