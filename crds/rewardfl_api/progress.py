"""What the trainer tells the operator while it runs: one small document in the job's progress ConfigMap."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from .base import ApiModel
from .guard import GuardTrip
from .parameters import MAX_STEPS_LIMIT
from .printable import one_line

PROGRESS_KEY = "progress.json"
"""Key of the document in the ConfigMap `<job>-progress`."""

PROGRESS_MAX_BYTES = 16_384
"""A longer document is ignored with an event."""

FILES_SHOWN = 20
"""Files that are told of one by one; the others are in the counts only, so that document and status stay small."""

FILE_NAME_MAX_CHARACTERS = 96

LARGEST_NUMBER = 1e12
Number = Annotated[float, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0, le=2**53)]
FileCount = Annotated[int, Field(ge=0, le=2**31 - 1)]
Step = Annotated[int, Field(ge=0, le=MAX_STEPS_LIMIT)]
Place = Annotated[str, Field(max_length=4096), AfterValidator(one_line)]
"""A URI as a pod wrote it. It ends up in conditions, events and on terminals."""

ProgressPhase = Literal["Staging", "Preparing", "Training", "Saving"]
FileState = Literal["waiting", "fetching", "done", "cached"]
"""cached: it was there already, and nothing of it was fetched."""


class Metrics(ApiModel):
    """The latest training metrics. All of them are means over the last logged optimizer step."""

    reward: Number | None = None
    """Mean score; of several rewards, their mean by weight. That of face identity is a cosine, -1 to 1."""
    loss: Number | None = None
    """Loss."""
    kl: Number | None = None
    """KL term before its weight."""
    grad_norm: Number | None = None
    """Gradient norm before clipping."""
    seconds_per_step: Number | None = None
    """Seconds per optimizer step, averaged over the last steps."""
    no_face_fraction: Number | None = None
    """Share of generated frames without a face."""
    held_out_reward: Number | None = None
    """Mean score of the evaluation rows, which are never trained on, when it was last measured."""


class StagedFile(ApiModel):
    """One of the files that are staged."""

    name: Annotated[str, Field(max_length=FILE_NAME_MAX_CHARACTERS), AfterValidator(one_line)]
    """Its key in the bucket, or its path in the repository; of a long one the end."""
    state: FileState
    """waiting, fetching, done, or cached: it was there already."""
    bytes_done: Bytes = 0
    """Bytes that are in place."""
    bytes_total: Bytes = 0
    """Its size."""


class StagingProgress(ApiModel):
    """Bytes and files moved from storage."""

    bytes_done: Bytes = 0
    """Bytes that are in place."""
    bytes_total: Bytes = 0
    """Bytes to stage."""
    bytes_per_second: Number = 0.0
    """Rate of the last seconds."""
    bytes_cached: Bytes = 0
    """Bytes of the files that were in the cache already."""
    files_done: FileCount = 0
    """Files that are in place."""
    files_total: FileCount = 0
    """Files to stage."""
    files_cached: FileCount = 0
    """Files that were in the cache already, and of which nothing was fetched."""
    files: Annotated[list[StagedFile], Field(max_length=FILES_SHOWN)] = Field(default_factory=list)
    """The largest files, in the order in which they are fetched. Only while staging: told no more when all are there."""


class Checkpoint(ApiModel):
    """The last save of the trained weights."""

    step: Step
    """Optimizer step after which it was saved."""
    uri: Place
    """Where it is."""
    time: AwareDatetime
    """When it was complete."""


class BestCheckpoint(ApiModel):
    """The checkpoint whose held-out reward is the highest; the earlier one of equals."""

    step: Step
    """Optimizer step after which it was saved."""
    score: Number
    """Its held-out reward."""
    uri: Place
    """Where it is. It is kept beside the newest ones."""


class Results(ApiModel):
    """Where the results are."""

    lora: Place | None = None
    """The trained weights (safetensors)."""
    report: Place | None = None
    """The report, one HTML page, from the first checkpoint on."""
    metrics: Place | None = None
    """One JSON line per logged step."""
    samples: Place | None = None
    """Folder with the videos before and after training."""
    best_checkpoint: BestCheckpoint | None = None
    """The checkpoint whose held-out reward is the highest. Unset where nothing is held out."""


class Progress(ApiModel):
    """The progress document. Written by pod 0: by `stage` while it stages, by rank 0 afterwards."""

    phase: ProgressPhase
    """What is going on."""
    time: AwareDatetime
    """When this was written."""
    step: Step = 0
    """Optimizer steps done."""
    total_steps: Step = 0
    """Optimizer steps in all. 0: not known yet."""
    epoch: Step = 0
    """Passes over the dataset done."""
    eta_seconds: Annotated[float, Field(ge=0, le=1e9)] | None = None
    """Seconds until the end of training, from the rate of the last steps."""
    metrics: Metrics = Field(default_factory=Metrics)
    """The latest metrics."""
    staging: StagingProgress | None = None
    """Bytes staged by pod 0."""
    checkpoint: Checkpoint | None = None
    """The last save."""
    results: Results | None = None
    """Where the results are."""
    guard: GuardTrip | None = None
    """Which of the guard's rules was broken last, if one was."""
    message: Annotated[str, Field(max_length=1024), AfterValidator(one_line)] = ""
    """One sentence for the user."""
