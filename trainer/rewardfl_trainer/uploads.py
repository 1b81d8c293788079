"""Uploads checkpoints and sample videos in the background, and deletes checkpoints that are not kept any more.

An upload that fails is reported once and tried again; it never stops training, and never costs the local copy. Checkpoints come
first. Only the newest one waits for its turn, and the best one by the held-out reward: one that is overtaken while it waits is
not uploaded at all.
"""

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rewardfl_api.errors import Reason, RewardFLError
from rewardfl_api.progress import BestCheckpoint, Checkpoint

from .background import Background
from .disk import write_json
from .failures import Terminated
from .files import BEST_FILE, METRICS_FILE, REPORT_FILE, SAMPLES_FOLDER, TENSORBOARD_FOLDER
from .manifest import MANIFEST_FILE, Manifest
from .stopping import upload_seconds
from .storage import Storage, join

CHECKPOINTS_FOLDER = "checkpoints"
FOLDER_PREFIX = "step-"
WEIGHTS_SUFFIX = ".safetensors"
RETRY_SECONDS = 30.0
"""Between an upload that failed and the next attempt, on top of the attempts that the storage client makes."""

PATIENCE_SECONDS = 900.0
"""How long a run that is done tries to upload its results: when it gives up, its disk goes with the pod. Below the time that
the other ranks wait for this one (environment.COLLECTIVE_TIMEOUT)."""

MAY_PASS = (Reason.STORAGE_UNAVAILABLE, Reason.STORAGE_ACCESS_DENIED, Reason.BUCKET_NOT_FOUND, Reason.IO_FAILED)
"""Why an upload fails that works when somebody has mended something."""

FAILED_RUN_SECONDS = 120.0
"""How long a run that fails waits for its last checkpoint to arrive."""

CHECKPOINT, BEST = "the last checkpoint", "the best checkpoint"
"""Names of their uploads."""

Uploaded = TypeVar("Uploaded")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A checkpoint to upload."""

    step: int
    folder: Path
    best: BestCheckpoint | None
    """The best checkpoint when it was saved."""


class Uploads:
    """What is uploaded while training goes on. Every rank has its own; checkpoints are the main one's.

    Args:
        storage: where to.
        output: folder of the results there.
        keep: checkpoints kept, here and there.
        retry_seconds: pause after a failure.
        patience_seconds: how long `insist` goes on, all its calls together.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        keep: int,
        retry_seconds: float = RETRY_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.storage, self.output, self.keep = storage, output, keep
        self.tell: Callable[[str], None] = logger.warning
        """Is told why the end of the run is waiting for the storage."""
        self._retry_seconds, self._patience_seconds = retry_seconds, patience_seconds
        self._waited_seconds = 0.0
        self.uploaded: Checkpoint | None = None
        """The newest checkpoint that is whole in `output`."""
        self.best: BestCheckpoint | None = None
        """The best checkpoint that is whole in `output`, and on record there."""
        self._whole: set[int] = set()
        self._background = Background("uploads", retry_seconds)
        self._complaints: set[str] = set()

    def submit(self, folder: Path, step: int, best: BestCheckpoint | None = None) -> None:
        """Upload a whole local checkpoint soon. Returns at once. `best`: the best one, which may be this."""
        job = Job(step, folder, best)
        self._background.put(CHECKPOINT, lambda: self._carry_out(job), first=True)
        if best is not None and best.step == step:
            self._background.put(BEST, lambda: self._record_best(job, best))

    def recall_best(self, best: BestCheckpoint | None, root: Path) -> BestCheckpoint | None:
        """Return the best checkpoint of an earlier start: `best`, or where that never arrived the one on record in `output`.

        The one on record is kept until another takes its place there, also where nothing can be compared with it any more.
        One that is on this disk only is uploaded.

        Args:
            best: what the checkpoint that the run goes on from says; None where nothing counts that was measured before.
            root: local folder of all checkpoints.
        """
        found = None if best is None else best.copy_with(uri=checkpoint_uri(self.output, best.step))  # outputs are copied, too
        try:
            self.best = self._recorded(root)
            if found is None or found == self.best:
                return found
            if not self._exists(found.step) and not (root / checkpoint_name(found.step) / MANIFEST_FILE).is_file():
                logger.warning("%s, the best checkpoint so far, is gone", found.uri)
                return self.best
        except RewardFLError as error:  # it is only named: no reason to end a run
            logger.warning("the best checkpoint cannot be looked for: %s", error.message)
            self.best = found
        if found is not None:
            job = Job(found.step, root / checkpoint_name(found.step), found)
            self._background.put(BEST, lambda: self._record_best(job, found))
        return found

    def _recorded(self, root: Path) -> BestCheckpoint | None:
        """Return the best checkpoint as `output` has it on record, if it is there."""
        local = root / f".{BEST_FILE}"
        try:
            self.storage.download_file(join(self.output, BEST_FILE), local)
            found = BestCheckpoint.model_validate_json(local.read_bytes())
        except RewardFLError as error:
            if error.reason is Reason.OBJECT_NOT_FOUND:
                return None
            raise
        except ValueError:
            logger.warning("%s cannot be read, and is written anew", join(self.output, BEST_FILE))
            return None
        return found.copy_with(uri=checkpoint_uri(self.output, found.step)) if self._exists(found.step) else None

    def _exists(self, step: int) -> bool:
        """Whether a checkpoint is whole in `output`."""
        exists = MANIFEST_FILE in self.storage.list_files(checkpoint_uri(self.output, step))
        if exists:
            self._whole.add(step)
        return exists

    def submit_file(self, local: Path, name: str) -> None:
        """Upload a whole local file as `name` in `output` soon. Returns at once."""
        self._background.put(name, lambda: self._upload_file(local, name))

    def insist(self, upload: Callable[[], Uploaded]) -> Uploaded:
        """Carry out an upload that the run cannot end without, and return its answer. The main thread's.

        Storage that is away or refuses is tried again: the pod's disk, with what may be the only copy, goes with the pod.

        Raises:
            RewardFLError: it failed in a way that does not pass, or for too long.
        """
        while True:
            began = time.monotonic()
            try:
                return upload()
            except RewardFLError as error:
                left = self._patience_seconds - self._waited_seconds
                if error.reason not in MAY_PASS or left <= 0:
                    raise
                self.tell(f"The results cannot be uploaded; they are tried again for up to {left:.0f} s: {error.message}")
            time.sleep(self._retry_seconds)
            self._waited_seconds += time.monotonic() - began

    def finish(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything is uploaded, trying once more what failed; return whether it is."""
        left = self._background.finish(timeout_seconds)
        if left:
            here = "what is missing there may be on this machine's disk only"
            logger.warning("%s: not in %s; %s", ", ".join(left), self.output, here)
        return not left

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.finish()
        else:
            self.finish(upload_seconds() if isinstance(error, Terminated) else FAILED_RUN_SECONDS)

    def _upload_file(self, local: Path, name: str) -> bool:
        """Upload a file; return whether it is in `output`."""
        try:
            self.storage.upload_file(local, join(self.output, name))
        except Exception as error:  # an upload must never stop training
            self._complain("file", f"{name} could not be uploaded, and is tried again: {error}")
            return False
        self._complaints.discard("file")
        return True

    def _carry_out(self, job: Job) -> bool:
        """Upload a checkpoint and delete old ones; return whether it is in `output`."""
        try:
            started = time.monotonic()
            self._upload(job)
            logger.info("uploaded %s in %.1f s", self.uploaded.uri if self.uploaded else job.folder, time.monotonic() - started)
            self._complaints.discard("upload")
            self._delete_old_uploads(job)
        except Exception as error:  # an upload must never stop training
            self._complain(
                "upload",
                f"{job.folder.name} could not be uploaded; the local copy is whole: {error}",
            )
        self._delete_old_folders(job)
        return self.uploaded is not None and self.uploaded.step == job.step

    def _record_best(self, job: Job, best: BestCheckpoint) -> bool:
        """See to it that the best checkpoint is in `output`, then say so there; return whether it is done."""
        record = job.folder.parent / f".{BEST_FILE}"
        try:
            if job.step not in self._whole and not self._exists(job.step):
                self._upload(job)
            write_json(record, best.to_trainer())
            self.storage.upload_file(record, join(self.output, BEST_FILE))
        except Exception as error:  # an upload must never stop training
            self._complain("best", f"the best checkpoint (step {best.step}) is not on record, and is tried again: {error}")
            return False
        self._complaints.discard("best")
        self.best = best
        try:
            self._delete_old_uploads(job)
        except RewardFLError as error:
            self._complain("deletion", f"old checkpoints cannot be deleted: {error}")
        return True

    def _upload(self, job: Job) -> None:
        """Upload the metrics, unless newer ones are there, then the checkpoint's files, the manifest last."""
        manifest = Manifest.read(job.folder / MANIFEST_FILE)
        is_newest = self.uploaded is None or job.step >= self.uploaded.step
        for file in manifest.files if is_newest else []:
            if file.name == METRICS_FILE or file.name.startswith(f"{TENSORBOARD_FOLDER}/"):
                self.storage.upload_file(job.folder / file.name, join(self.output, file.name))
        uri = checkpoint_uri(self.output, job.step)
        for name in [*(file.name for file in manifest.files), MANIFEST_FILE]:
            self.storage.upload_file(job.folder / name, join(uri, name))
        self._whole.add(job.step)
        if is_newest:
            self.uploaded = Checkpoint(step=job.step, uri=uri, time=manifest.time)

    def _delete_old_uploads(self, job: Job) -> None:
        """Delete uploaded checkpoints that are older than the newest `keep` and not the best, and what was never finished."""
        root = join(self.output, CHECKPOINTS_FOLDER)
        by_step: dict[int, list[str]] = {}
        for name in self.storage.list_files(root):
            found = step_of(name.split("/", 1)[0])
            if found is not None and found <= job.step:
                by_step.setdefault(found, []).append(name)
        whole = sorted(
            (found for found, names in by_step.items() if checkpoint_name(found, MANIFEST_FILE) in names), reverse=True
        )
        # The best one on record stays until the record names its successor.
        best = {found.step for found in (job.best, self.best) if found is not None and found.step in whole}
        for found in by_step.keys() - set(whole[: self.keep]) - best:
            self._whole.discard(found)
            try:
                self.storage.delete_folder(checkpoint_uri(self.output, found), first=MANIFEST_FILE)
            except RewardFLError as error:
                self._complain("deletion", f"old checkpoints cannot be deleted: {error}")

    def _delete_old_folders(self, job: Job) -> None:
        """Delete local checkpoints older than the newest `keep`; the one after this may just be being written.

        The best one stays until it is uploaded, and no longer: disks are small.
        """
        older = {step: path for step, path in local_folders(job.folder.parent).items() if step < job.step}
        whole = sorted((step for step, path in older.items() if (path / MANIFEST_FILE).is_file()), reverse=True)
        best = {job.best.step} - self._whole if job.best is not None else set()
        for step in older.keys() - set(whole[: self.keep - 1]) - best:
            (older[step] / MANIFEST_FILE).unlink(missing_ok=True)
            shutil.rmtree(older[step], ignore_errors=True)

    def _complain(self, kind: str, text: str) -> None:
        """Log a warning, once for each kind until an upload succeeds."""
        if kind not in self._complaints:
            self._complaints.add(kind)
            logger.warning("%s", text)


def abort_interrupted(storage: Storage, output: str) -> list[str]:
    """Abort the uploads of an earlier start that was killed in the middle: their parts cost money and nobody sees them.

    A run is the only one that writes to its output, so whatever is unfinished there when it starts is left over. Optional work:
    where it is not allowed, or fails, a line in the log says so. Return the names of the files.
    """
    try:
        names = storage.abort_uploads(output, is_own)
    except RewardFLError as error:
        logger.info("uploads that an earlier start left unfinished are not looked for: %s", error.message)
        return []
    if names:
        logger.info("removed the parts of %d uploads that an earlier start left unfinished: %s", len(names), ", ".join(names))
    return names


def is_own(name: str) -> bool:
    """Whether a name below an output folder is one that a run gives to a large file; other jobs' outputs may lie below it."""
    folder, _, rest = name.partition("/")
    if not rest:
        return name.endswith(WEIGHTS_SUFFIX) or name in (METRICS_FILE, REPORT_FILE, BEST_FILE)
    if folder == CHECKPOINTS_FOLDER:
        return step_of(rest.partition("/")[0]) is not None
    return folder in (SAMPLES_FOLDER, TENSORBOARD_FOLDER)


def checkpoint_name(step: int, name: str = "") -> str:
    """Return the name of a checkpoint's folder, or of a file in it, below the folder of all."""
    return f"{FOLDER_PREFIX}{step}/{name}" if name else f"{FOLDER_PREFIX}{step}"


def checkpoint_uri(output: str, step: int) -> str:
    """Return where a checkpoint is uploaded to."""
    return join(join(output, CHECKPOINTS_FOLDER), checkpoint_name(step))


def step_of(folder_name: str) -> int | None:
    """Return the step of a checkpoint's folder; None for any other name."""
    text = folder_name.removeprefix(FOLDER_PREFIX)
    return int(text) if folder_name.startswith(FOLDER_PREFIX) and text.isascii() and text.isdigit() else None


def local_folders(root: Path) -> dict[int, Path]:
    """Return the checkpoint folders on this machine by their steps."""
    if not root.is_dir():
        return {}
    found = {path: step_of(path.name) for path in root.iterdir() if path.is_dir() and not path.is_symlink()}
    return {step: path for path, step in found.items() if step is not None}
