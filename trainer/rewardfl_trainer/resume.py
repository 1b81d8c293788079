"""Finds the newest whole checkpoint, on this machine or in `output`, and puts a run into the state that it holds.

The main rank alone looks and reads; the others are told. Must not write to `output`.
"""

import logging
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

from . import random_state
from .checkpoint import STATE_PREFIX, SUFFIX, Trained
from .collective import on_main
from .environment import Process
from .files import METRICS_FILE, TENSORBOARD_FOLDER
from .identity import Identity
from .manifest import MANIFEST_FILE, Manifest, ManifestError
from .optimizer import restore_schedule
from .order import Position
from .run_state import STATE_FILE, RunState
from .storage import Storage, join
from .uploads import CHECKPOINTS_FOLDER, checkpoint_name, checkpoint_uri, local_folders, step_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A whole checkpoint on the main rank's disk."""

    folder: Path
    uri: str
    """Where it is, or will be, in `output`."""
    uploaded: bool
    """Whether `output` has it."""
    time: datetime
    """When it was complete."""
    state: RunState

    @property
    def position(self) -> Position:
        """How far the run was."""
        return self.state.position


def find(storage: Storage, folder: Path, identity: Identity) -> Found | None:
    """Return the newest whole checkpoint of this output; None when there is none. Called on the main rank.

    Every candidate is verified, byte by byte; one that is not whole is passed over with a warning, for the next older one.

    Args:
        storage: of `output`.
        folder: local folder of the results; a checkpoint from `output` is copied there.
        identity: of this run.

    Raises:
        RewardFLError: the checkpoint belongs to a run with other parameters (exit code 78), or the storage cannot be read.
    """
    root = folder / CHECKPOINTS_FOLDER
    here = {step for step, path in local_folders(root).items() if (path / MANIFEST_FILE).is_file()}
    there = _uploaded_steps(storage, identity.output)
    for step in sorted(here | there, reverse=True):
        for is_local in (True, False):
            if step not in (here if is_local else there):
                continue
            try:
                found = _local(root, step, identity, step in there) if is_local else _fetched(storage, root, step, identity)
            except (ManifestError, OSError, ValueError) as error:
                logger.warning("checkpoint %s is passed over: %s", checkpoint_name(step), error)
                continue
            if found is not None:
                identity.check(found.state.identity, found.uri)
                return found
    return None


def restore(found: Found, engine: Trained, process: Process) -> None:
    """Put the engine, its schedule and the random generators into the state of a checkpoint. A collective call.

    Raises:
        RewardFLError: what is trained differs from what the checkpoint holds (exit code 78).
    """
    with ExitStack() as files:
        paths = sorted(found.folder.glob(f"{STATE_PREFIX}*{SUFFIX}")) if process.is_main else []
        opened = [files.enter_context(safe_open(path, "pt")) for path in paths]
        file_of = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - not a mapping
        names = on_main(process, lambda: _checked_names(found, engine, file_of))

        def read(name: str) -> Tensor:
            tensor: Tensor = file_of[name].get_tensor(name)
            return tensor

        engine.state.load(names, read)
    restore_schedule(engine.schedule, found.state.schedule)
    random_state.restored(found.state.random, process)


def restore_metrics(found: Found, folder: Path) -> None:
    """Put back the metrics and events as they were at the checkpoint: what was written after it is gone. On the main rank."""
    shutil.rmtree(folder / TENSORBOARD_FOLDER, ignore_errors=True)
    if (found.folder / TENSORBOARD_FOLDER).is_dir():
        shutil.copytree(found.folder / TENSORBOARD_FOLDER, folder / TENSORBOARD_FOLDER)
    metrics = found.folder / METRICS_FILE
    shutil.copyfile(metrics, folder / METRICS_FILE) if metrics.is_file() else (folder / METRICS_FILE).write_text("")


def _uploaded_steps(storage: Storage, output: str) -> set[int]:
    """Return the steps of which `output` has a manifest."""
    names = storage.list_files(join(output, CHECKPOINTS_FOLDER))
    folders = [name.removesuffix(f"/{MANIFEST_FILE}") for name in names if name.endswith(f"/{MANIFEST_FILE}")]
    return {step for name in folders if (step := step_of(name)) is not None}


def _local(root: Path, step: int, identity: Identity, uploaded: bool) -> Found | None:
    """Return a checkpoint that lies on this machine; None when it is another output's.

    Raises:
        ManifestError, OSError, ValueError: it is not whole.
    """
    folder = root / checkpoint_name(step)
    manifest = Manifest.read(folder / MANIFEST_FILE)
    manifest.verify(folder)
    state = RunState.read(folder / STATE_FILE)
    if state.identity.output != identity.output:
        logger.info("%s belongs to %s", folder, state.identity.output)
        return None
    return Found(folder, checkpoint_uri(identity.output, step), uploaded, manifest.time, state)


def _fetched(storage: Storage, root: Path, step: int, identity: Identity) -> Found:
    """Copy a checkpoint from `output` to this machine.

    Raises:
        ManifestError, ValueError: it is not whole.
        RewardFLError: the storage cannot be read.
    """
    uri = checkpoint_uri(identity.output, step)
    partial_folder, folder = root / f".{checkpoint_name(step)}.partial", root / checkpoint_name(step)
    shutil.rmtree(partial_folder, ignore_errors=True)
    logger.info("fetching %s", uri)
    try:
        storage.download_file(join(uri, MANIFEST_FILE), partial_folder / MANIFEST_FILE)
        manifest = Manifest.read(partial_folder / MANIFEST_FILE)
        for file in manifest.files:
            storage.download_file(join(uri, file.name), partial_folder / file.name)
    except RewardFLError as error:
        if error.reason is Reason.OBJECT_NOT_FOUND:
            raise ManifestError(str(error)) from error
        raise
    manifest.verify(partial_folder)
    state = RunState.read(partial_folder / STATE_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    partial_folder.replace(folder)
    # A bucket may have been copied: what lies in this output is this output's.
    return Found(folder, uri, True, manifest.time, state)


def _checked_names(found: Found, engine: Trained, file_of: Mapping[str, safe_open]) -> list[str]:
    """Return the names of all tensors, checked against what is trained."""
    shapes = engine.state.shapes()
    try:
        saved = {
            name: torch.Size(file.get_slice(name).get_shape())  # type: ignore[no-untyped-call]
            for name, file in file_of.items()
        }
    except SafetensorError as error:
        raise _other_parameters(found, str(error)) from error
    for name, shape in shapes.items():
        if name not in saved:
            raise _other_parameters(found, f"it has no {name}")
        if saved[name] != shape:
            raise _other_parameters(found, f"{name} has the shape {tuple(saved[name])} there and {tuple(shape)} here")
    return list(saved)


def _other_parameters(found: Found, problem: str) -> RewardFLError:
    return RewardFLError(
        Reason.BAD_CONFIGURATION,
        f"{found.uri} cannot be resumed from: {problem}.",
        "Train what it was made with, or name another output.",
        ExitCode.BAD_CONFIGURATION,
    )
