"""A saver over a small network without DeepSpeed, for the tests of checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LRScheduler

from rewardfl_api.spec import Storage as StorageSpec
from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.checkpoint import Saver
from rewardfl_trainer.engine_state import EngineState
from rewardfl_trainer.environment import Process
from rewardfl_trainer.identity import Identity, Rows
from rewardfl_trainer.models import Models
from rewardfl_trainer.optimizer import make_optimizer, make_schedule
from rewardfl_trainer.sampling import Plan
from rewardfl_trainer.storage import Storage
from rewardfl_trainer.trainable import Trainable, make_trainable
from rewardfl_trainer.uploads import Uploads
from tests.unit.datasets import parameters
from tests.unit.small_networks import small_dit, small_text_encoder, small_vae

MAIN = Process(rank=0, world_size=1, device=torch.device("cpu"))


@dataclass
class SmallEngine:
    """Optimizer and schedule without DeepSpeed."""

    state: EngineState
    schedule: LRScheduler


def engine_of(trainable: Trainable, given: TrainingParameters) -> SmallEngine:
    named = trainable.parameters()
    optimizer = make_optimizer([parameter for _, parameter in named], given, offloaded=False)
    return SmallEngine(EngineState(named, optimizer, optimizer, MAIN), make_schedule(optimizer, given, 10))


def saver(tmp_path: Path, **changes: object) -> Saver:
    given = parameters(
        trainable_models="dit2", min_timestep_boundary=0.9, **{"lora_base_model": "dit2", "lora_rank": 2, **changes}
    )
    models = Models(small_dit(), small_dit(1), small_text_encoder(), small_vae(), tokenizer=None)  # type: ignore[arg-type]
    trainable = make_trainable(models, given, Plan.of(given))
    storage, output = Storage(StorageSpec()), str(tmp_path / "out")
    identity = Identity(output=output, training=given.to_trainer(), dataset=Rows(rows=1, sha256="0"))
    uploads = Uploads(storage, output, given.save_total_limit, retry_seconds=0.1)
    engine = engine_of(trainable, given)
    return Saver(trainable, engine, given, storage, uploads, tmp_path / "work", output, identity, MAIN, partitioned=False)


def train_a_step(made: Saver) -> None:
    """Update the trained parameters once, with a gradient of their own value plus one."""
    for _, parameter in made.engine.state.named:
        parameter.grad = parameter.detach() + 1
    made.engine.state.optimizer.step()
    made.engine.schedule.step()
