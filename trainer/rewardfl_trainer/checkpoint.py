"""Saves the trained weights: whole or not at all, on disk and in `output`.

A checkpoint is a folder `checkpoints/step-N/` with the weights and, written last, `manifest.json`; without a manifest it does
not exist. Optimizer and scheduler state can be added beside the weights without changing this form.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, distributed

from rewardfl_api.progress import Checkpoint
from rewardfl_api.training import TrainingParameters

from .environment import Process
from .export import exported, in_layouts
from .storage import Storage, join
from .trainable import Trainable

CHECKPOINTS_FOLDER = "checkpoints"
MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
SUFFIX = ".safetensors"
HASH_CHUNK_BYTES = 2**22

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saver:
    """Writes checkpoints and the final weights. Every rank calls it; the main one writes.

    Attributes:
        folder: local folder of the results.
        output: where they are uploaded to.
        partitioned: whether ZeRO 3 spread the parameters over the ranks.
    """

    trainable: Trainable
    parameters: TrainingParameters
    storage: Storage
    folder: Path
    output: str
    process: Process
    partitioned: bool

    def save(self, step: int) -> Checkpoint | None:
        """Write and upload the checkpoint of an optimizer step. A collective call; only the main rank gets the checkpoint.

        Raises:
            RewardFLError: it could not be uploaded; the local one is whole.
        """
        tensors = exported(self.trainable, self.parameters, partitioned=self.partitioned)
        checkpoint = self._write(step, tensors) if self.process.is_main else None
        distributed.barrier()
        return checkpoint

    def save_final(self, step: int) -> list[str]:
        """Write and upload the weights under their final names. A collective call; the main rank gets their URIs."""
        tensors = exported(self.trainable, self.parameters, partitioned=self.partitioned)
        uris: list[str] = []
        if self.process.is_main:
            for name, file_tensors in in_layouts(tensors, self.parameters).items():
                path = self.folder / f"{name}{SUFFIX}"
                write_whole(path, file_tensors, self._metadata(step))
                uris.append(self.storage.upload_file(path, join(self.output, path.name)))
        distributed.barrier()
        return uris

    def _write(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> Checkpoint:
        """Write a checkpoint's files, the manifest last, first here and then in `output`."""
        name = f"step-{step}"
        folder = self.folder / CHECKPOINTS_FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files = []
        for file_name, file_tensors in tensors.items():
            path = folder / f"{file_name}{SUFFIX}"
            write_whole(path, file_tensors, self._metadata(step))
            files.append(path)
        uri = join(join(self.output, CHECKPOINTS_FOLDER), name)
        for path in files:
            self.storage.upload_file(path, join(uri, path.name))
        manifest = folder / MANIFEST_FILE
        write_json(manifest, {"version": MANIFEST_VERSION, "step": step, "files": [_describe(path) for path in files]})
        self.storage.upload_file(manifest, join(uri, manifest.name))
        logger.info("saved %s", uri)
        return Checkpoint(step=step, uri=uri, time=datetime.now(UTC))

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
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that is either whole on disk or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _describe(path: Path) -> dict[str, Any]:
    """Return name, size and SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
