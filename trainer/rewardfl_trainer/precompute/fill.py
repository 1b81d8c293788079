"""The first phase: everything that training, samples and evaluation start from is computed and kept, before training.

Each network is loaded when its first entry is found missing, and released before the next ones are: text encoder and VAE for the
conditions, then the DiT of the leading steps. The ranks of a node take entries one by one; whoever is killed leaves what is done.
"""

import gc
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import distributed

from rewardfl_api.training import TrainingParameters

from ..conditioning import MASK_CHANNELS, Conditioner
from ..data import VideoDataset
from ..environment import Process
from ..models import DTYPES, MAX_TEXT_TOKENS, FoundModels, load_models
from ..preparation import Kept, Preparer, Purpose
from ..rewards.composition import Rewards
from ..rollout import leading_steps
from ..sampling import Plan
from ..wan_vae import LATENT_CHANNELS, latent_shape
from .keys import CONDITION, PREFIX, REFERENCE
from .phases import CONDITION_NETWORKS
from .store import Key

ROUND_SECONDS = 5.0
"""How long a rank works before it tells the others how far it is."""

POLL_SECONDS = 0.1
"""How long a rank waits for entries that others are making."""

EMBEDDING_BYTES = 512 * 4
"""What the reward keeps of a frame: an ArcFace embedding."""

Report = Callable[[str], None]

logger = logging.getLogger(__name__)


class Wanted(NamedTuple):
    """A start that will be asked for: a row's position in the dataset, which of its noises, and what for."""

    position: int
    draw: int
    purpose: Purpose


class Task(NamedTuple):
    """An entry to be made."""

    kind: str
    wanted: Wanted


@dataclass(frozen=True)
class FirstPhase:
    """Fills the store with what a run asks for.

    Attributes:
        report: is told how far it is, on the main rank.
    """

    parameters: TrainingParameters
    found: FoundModels
    plan: Plan
    dataset: VideoDataset
    reward: Rewards
    kept: Kept
    process: Process
    report: Report

    def run(self, wanted: Collection[Wanted]) -> None:
        """Make every entry that is missing. A collective call; `wanted` is what this rank will ask for.

        Raises:
            RewardFLError: the disk is too small, a model is missing or damaged, or a video is.
        """
        ours = [(number, theirs) for number, (node, theirs) in enumerate(self._gather(list(wanted))) if node == self.process.node]
        number = [rank for rank, _ in ours].index(self.process.rank)
        self.kept.keys.digests.share(self.kept.keys.files(), number, len(ours))
        everything = sorted(set(chain.from_iterable(theirs for _, theirs in ours)))
        stages = [self._missing(tasks, number, len(ours)) for tasks in self._stages(everything)]
        self._check_room(list(chain.from_iterable(stages)))
        for tasks, load in zip(stages, (self._condition_phase, self._prefix_phase), strict=True):
            self._make(_rotated(tasks, number, len(ours)), load)

    def _stages(self, wanted: Sequence[Wanted]) -> tuple[list[Task], list[Task]]:
        """Return the entries of each stage: what is made of rows, row by row, and what is made of noises."""
        phases = self.kept.phases
        kinds = [CONDITION] * phases.keeps_conditions + [REFERENCE] * phases.keeps_references
        first_of_row = {start.position: start for start in reversed(wanted)}
        of_rows = [Task(kind, first_of_row[position]) for position in sorted(first_of_row) for kind in kinds]
        return of_rows, [Task(PREFIX, start) for start in wanted] if phases.prefix_steps else []

    def _missing(self, tasks: list[Task], number: int, count: int) -> list[Task]:
        """Return the tasks whose entries are not there, each of the node's `count` ranks looking at its share."""
        keys = self._preparer()
        lacking = [task for task in tasks[number::count] if self.kept.store.read(_key(keys, task)) is None]
        found = {task for node, theirs in self._gather(lacking) if node == self.process.node for task in theirs}
        return [task for task in tasks if task in found]

    def _make(self, tasks: list[Task], load: Callable[[], Preparer]) -> None:
        """Make the entries of a stage together with the other ranks of the node; return when every rank's are there."""
        total, made, preparer = len(tasks), 0, None
        while True:
            until = time.monotonic() + ROUND_SECONDS
            while tasks and time.monotonic() < until:
                task, tasks = tasks[0], tasks[1:]
                key = _key(preparer or self._preparer(), task)
                with self.kept.store.claim(key) as ours:
                    if ours and self.kept.store.read(key) is None:
                        preparer = preparer or load()
                        _make(preparer, task)
                        made += 1
                if not ours:
                    tasks.append(task)
                    time.sleep(POLL_SECONDS)
            states = self._gather((made, len(tasks)))
            done = sum(theirs for node, (theirs, _) in states if node == self.process.node)
            if total:
                self.report(f"Computing what training starts from: {done} of {total}.")
            if not any(left for _, (_, left) in states):
                break
        if preparer is not None:
            del preparer
            _release_memory()

    def _condition_phase(self) -> Preparer:
        """Load what conditions and references are made with."""
        return self._preparer(CONDITION_NETWORKS if self.kept.phases.keeps_conditions else ())

    def _prefix_phase(self) -> Preparer:
        """Load the DiT of the leading steps, and what makes conditions where these are not kept."""
        networks = self.kept.phases.prefix_networks
        return self._preparer(networks if self.kept.phases.keeps_conditions else {*networks, *CONDITION_NETWORKS})

    def _preparer(self, names: Collection[str] = ()) -> Preparer:
        """Return a preparer with the networks of these names in memory."""
        parameters, device = self.parameters, self.process.device
        if not names:
            return Preparer(self.dataset, None, self.reward, parameters, device, self.kept)
        logger.info("loading %s", ", ".join(sorted(names)))
        conditions = "text_encoder" in names
        models = load_models(parameters, device, self.found, names, encoder=conditions)
        inputs, dtype = parameters.extra_input_names, DTYPES[parameters.dtype]
        conditioner = Conditioner(models, inputs, dtype, device) if conditions else None
        leading = partial(leading_steps, models, self.plan, num_steps=self.kept.phases.prefix_steps)
        return Preparer(self.dataset, conditioner, self.reward, parameters, device, self.kept, leading)

    def _check_room(self, tasks: list[Task]) -> None:
        """Say how much will be written, and refuse to begin when it does not fit."""
        needed = sum(self._bytes(task) for task in tasks)
        if needed:
            count, megabytes = len(tasks), needed / 1e6
            logger.info("%d results to compute before training: %.1f MB below %s", count, megabytes, self.kept.store.folder)
            self.kept.store.check_room(needed, "training.cache_prefix, cache_conditions or cache_references")

    def _bytes(self, task: Task) -> int:
        """Return the size of an entry."""
        frames = self.parameters.num_frames
        _, _, *size = latent_shape(frames, *self.kept.sizes[task.wanted.position])
        positions = size[0] * size[1] * size[2]
        width = DTYPES[self.parameters.dtype].itemsize
        if task.kind == REFERENCE:
            return frames * EMBEDDING_BYTES
        if task.kind == PREFIX:
            return LATENT_CHANNELS * positions * width
        return (MAX_TEXT_TOKENS * self._text_width + (MASK_CHANNELS + LATENT_CHANNELS) * positions) * width

    @cached_property
    def _text_width(self) -> int:
        width: int = self.found.empty_dit().text_embedding[0].in_features
        return width

    def _gather(self, value: Any) -> list[tuple[int, Any]]:
        """Return every rank's node and value. A collective call."""
        everyone: list[Any] = [None] * self.process.world_size
        distributed.all_gather_object(everyone, (self.process.node, value))
        return everyone


def _key(preparer: Preparer, task: Task) -> Key:
    """Name the entry of a task."""
    match task.kind:
        case "condition":
            return preparer.condition_key(task.wanted.position)
        case "reference":
            return preparer.reference_key(task.wanted.position)
        case _:
            return preparer.prefix_key(*task.wanted)


def _make(preparer: Preparer, task: Task) -> None:
    """Make and keep an entry."""
    position, draw, purpose = task.wanted
    match task.kind:
        case "condition":
            preparer.condition(position)
        case "reference":
            preparer.reference(position)
        case _:
            preparer.start(position, draw, purpose=purpose)


def _rotated(tasks: list[Task], number: int, count: int) -> list[Task]:
    """Return the tasks in an order that starts elsewhere for each of `count` ranks."""
    start = len(tasks) * number // count
    return [*tasks[start:], *tasks[:start]]


def _release_memory() -> None:
    """Give back what the networks of a phase took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
