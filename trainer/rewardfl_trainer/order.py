"""Which samples are trained on, step by step, from any position on. Pure: the same position gives the same batches anywhere."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from rewardfl_api.training import TrainingParameters

from .data import MicroBatchSampler


@dataclass(frozen=True)
class Position:
    """How far a run is, in terms that do not depend on the number of ranks."""

    step: int = 0
    """Optimizer steps done."""
    pass_index: int = 0
    """Passes over the dataset done."""
    micro_batches: int = 0
    """Micro batches of this pass, of all ranks together, that are done with."""
    rounds: int = 0
    """Rounds done on the micro batches that come next."""


@dataclass(frozen=True)
class Batch:
    """The samples of one optimizer step of this rank."""

    pass_index: int
    """Passes over the dataset done before."""
    positions: list[int]
    """Positions in the dataset."""
    end: Position
    """Where the run is after this step."""
    visit: int
    """How often these samples were trained on before; decides their noise, and the step of a sampled KL."""


@dataclass(frozen=True)
class Order:
    """The batches of a run."""

    sampler: MicroBatchSampler
    parameters: TrainingParameters
    start: Position = Position()
    """Where the run goes on. Steps made by another number of ranks count as they are."""

    @property
    def steps_per_pass(self) -> int:
        """Optimizer steps of a pass over the dataset."""
        return len(self.sampler) // self.parameters.gradient_accumulation_steps * self.parameters.num_train_epochs

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, those before its start included."""
        if self.parameters.max_steps is not None:
            return max(self.parameters.max_steps, self.start.step)
        started = self._first_batch * self.parameters.num_train_epochs + self.start.rounds
        passes_left = self.parameters.dataset_repeat - self.start.pass_index
        return self.start.step + max(0, passes_left * self.steps_per_pass - started)

    @property
    def _first_batch(self) -> int:
        """Whole batches of the first pass that are done with. One that another number of ranks left half done is done again."""
        return self.start.micro_batches // self._global_micro_batches

    @property
    def _global_micro_batches(self) -> int:
        """Micro batches of an optimizer step, of all ranks together."""
        return self.parameters.gradient_accumulation_steps * self.sampler.world_size

    def batches(self) -> Iterator[Batch]:
        """Yield the batch of every optimizer step that is left."""
        return itertools.islice(self._endless(), self.total_steps - self.start.step)

    def _endless(self) -> Iterator[Batch]:
        step, first_batch, first_round = self.start.step, self._first_batch, self.start.rounds
        accumulation, rounds = self.parameters.gradient_accumulation_steps, self.parameters.num_train_epochs
        for pass_index in itertools.count(self.start.pass_index):
            micro_batches = self.sampler.batches(pass_index)
            for number in range(first_batch, len(micro_batches) // accumulation):
                of_batch = micro_batches[number * accumulation : (number + 1) * accumulation]
                positions = list(itertools.chain.from_iterable(of_batch))
                for done in range(first_round + 1, rounds + 1):
                    step += 1
                    visit = pass_index * rounds + done - 1
                    yield Batch(pass_index, positions, self._position(step, pass_index, number, done), visit)
                first_round = 0
            first_batch = 0

    def _position(self, step: int, pass_index: int, number: int, rounds: int) -> Position:
        """Return the position after so many rounds on batch `number` of a pass."""
        if rounds < self.parameters.num_train_epochs:
            return Position(step, pass_index, number * self._global_micro_batches, rounds)
        if (number + 1) * self.parameters.gradient_accumulation_steps < len(self.sampler):
            return Position(step, pass_index, (number + 1) * self._global_micro_batches)
        return Position(step, pass_index + 1)
