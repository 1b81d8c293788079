"""Saves all that a run is: whole or not at all, on disk at once, and in `output` in the background.

A checkpoint is a folder `checkpoints/step-N/`: the trained weights as they are exported, `state-*.safetensors` (the optimizer's
masters and moments), `state.json` (position, counters, schedule, random generators, identity), the metrics and TensorBoard events
up to this step, and, written last, `manifest.json`; without a manifest that describes them all it does not exist.
"""

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.optim.lr_scheduler import LRScheduler

import rewardfl_api
from rewardfl_api.progress import BestCheckpoint
from rewardfl_api.training import TrainingParameters

from . import random_state
from .disk import sync, write_json
from .engine_state import EngineState
from .environment import Process
from .export import exported, in_layouts
from .files import METRICS_FILE, TENSORBOARD_FOLDER
from .guard import Memory
from .identity import Identity
from .manifest import MANIFEST_FILE, Manifest
from .optimizer import schedule_state
from .order import Position
from .run_state import STATE_FILE, RunState
from .storage import Storage, join
from .trainable import Trainable
from .uploads import CHECKPOINTS_FOLDER, Uploads, checkpoint_name

SUFFIX = ".safetensors"
STATE_PREFIX = "state-"
STATE_FILE_BYTES = 4 * 2**30
"""Size at which another file of optimizer state is begun: what the main rank holds of it in memory at a time."""

logger = logging.getLogger(__name__)


class Trained(Protocol):
    """What the saver needs of the engine."""

    state: EngineState
    schedule: LRScheduler


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints and the final weights. Every rank calls it; the main one writes.

    Attributes:
        engine: holds optimizer and schedule.
        uploads: takes finished checkpoints.
        folder: local folder of the results.
        output: where they are uploaded to.
        identity: the run that the checkpoints belong to.
        partitioned: whether ZeRO 3 spread the parameters over the ranks.
    """

    trainable: Trainable
    engine: Trained
    parameters: TrainingParameters
    storage: Storage
    uploads: Uploads
    folder: Path
    output: str
    identity: Identity
    process: Process
    partitioned: bool

    def save(
        self,
        position: Position,
        bad_steps: int = 0,
        held_out: Mapping[str, float] | None = None,
        guard: Memory | None = None,
        best: BestCheckpoint | None = None,
    ) -> None:
        """Write a checkpoint to the disk and hand it to the uploads. A collective call.

        Args:
            position: how far the run is; the checkpoint is named after its step.
            bad_steps: steps in a row, the last ones, that were skipped.
            held_out: the held-out numbers as they were last measured; what is not finite is left out.
            guard: what it remembers.
            best: the checkpoint with the best held-out reward, which may be this one.

        Raises:
            OSError: the disk is full or broken; what was saved before is untouched.
        """
        folder = self.folder / CHECKPOINTS_FOLDER / checkpoint_name(position.step)
        if self.process.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        tensors = exported(self.trainable, self.parameters, partitioned=self.partitioned)
        if self.process.is_main:
            for name, file_tensors in tensors.items():
                write_whole(folder / f"{name}{SUFFIX}", file_tensors, self._metadata(position.step))
        self._write_engine_state(folder)
        generators = random_state.gathered(self.process)
        if self.process.is_main:
            finite = {name: value for name, value in (held_out or {}).items() if math.isfinite(value)}
            told = {"bad_steps": bad_steps, "held_out": finite, "guard": guard or Memory(), "best": best}
            state = self._state(position, told, generators)
            write_json(folder / STATE_FILE, state.dump())
            self._copy_metrics(folder)
            write_json(folder / MANIFEST_FILE, Manifest.of(folder, position.step).content())
            logger.info("saved %s", folder)
            self.uploads.submit(folder, position.step, best)
        distributed.barrier()

    def save_final(self, step: int) -> list[str]:
        """Write and upload the weights under their final names. A collective call; the main rank gets their URIs."""
        tensors = exported(self.trainable, self.parameters, partitioned=self.partitioned)
        uris: list[str] = []
        if self.process.is_main:
            for name, file_tensors in in_layouts(tensors, self.parameters).items():
                path = self.folder / f"{name}{SUFFIX}"
                write_whole(path, file_tensors, self._metadata(step))
                uris.append(self.uploads.insist(partial(self.storage.upload_file, path, join(self.output, path.name))))
        distributed.barrier()
        return uris

    def _write_engine_state(self, folder: Path) -> None:
        """Write the optimizer's state, a file at a time. A collective call."""
        part: dict[str, Tensor] = {}
        size, number = 0, 1
        for name, tensor in self.engine.state.tensors():
            if part and size + tensor.nbytes > STATE_FILE_BYTES:
                write_whole(folder / f"{STATE_PREFIX}{number:05}{SUFFIX}", part, {"format": "pt"})
                part, size, number = {}, 0, number + 1
            part[name] = tensor
            size += tensor.nbytes
        if part:
            write_whole(folder / f"{STATE_PREFIX}{number:05}{SUFFIX}", part, {"format": "pt"})

    def _state(self, position: Position, told: Mapping[str, Any], generators: list[dict[str, Any]]) -> RunState:
        """Return what is not tensors; `told`: by the loop."""
        return RunState(
            position=position,
            **told,
            schedule=schedule_state(self.engine.schedule),
            random=generators,
            identity=self.identity,
            made_by={"rewardfl": rewardfl_api.__version__, "torch": torch.__version__, "world_size": self.process.world_size},
        )

    def _copy_metrics(self, folder: Path) -> None:
        """Put the metrics so far into the checkpoint: a resumed run goes on with these, and later lines are gone."""
        if (self.folder / METRICS_FILE).is_file():
            shutil.copyfile(self.folder / METRICS_FILE, folder / METRICS_FILE)
        if (self.folder / TENSORBOARD_FOLDER).is_dir():
            shutil.copytree(self.folder / TENSORBOARD_FOLDER, folder / TENSORBOARD_FOLDER)

    def _metadata(self, step: int) -> dict[str, str]:
        """Return what a weights file says about itself."""
        parameters = self.parameters
        metadata = {"format": "pt", "step": str(step), "trained": parameters.trainable_models}
        if self.trainable.lora_base is not None:
            scale = str(parameters.lora_scale_numerator)
            metadata |= {"lora_base_model": str(parameters.lora_base_model), "lora_rank": str(parameters.lora_rank)}
            metadata |= {"lora_alpha": scale, "lora_target_modules": parameters.lora_target_modules}
        return metadata


def write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that is either whole on disk or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file(tensors, partial, metadata=metadata)
    sync(partial)
    partial.replace(path)
    sync(path.parent)
