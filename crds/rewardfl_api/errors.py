"""How the trainer image fails: exit codes, the reasons that a condition may carry, and the message a container leaves behind.

`Reason` is the closed list of condition reasons. Each has a cause and a remedy; docs and the command line show them.
"""

import json
from enum import IntEnum, StrEnum
from typing import Self

from pydantic import ConfigDict, Field

from .base import ApiModel

MESSAGE_MAX_CHARACTERS = 1500
"""The kubelet keeps 4096 bytes of a termination message; a third of it leaves room for any encoding."""

LOG_TAIL_MAX_CHARACTERS = 2048
"""Of a failed rank's log, how much of its end goes into the termination message, where there is room."""


LARGEST_RANK = 2**20


class ExitCode(IntEnum):
    """Exit codes of the trainer image."""

    DONE = 0
    FAILED = 1
    USAGE = 64
    BAD_DATA = 65
    MISSING_INPUT = 66
    UNAVAILABLE = 69
    IO_ERROR = 74
    BAD_CONFIGURATION = 78
    TERMINATED = 143


FINAL_EXIT_CODES = (ExitCode.USAGE, ExitCode.BAD_DATA, ExitCode.MISSING_INPUT, ExitCode.BAD_CONFIGURATION)
"""A retry would end the same way, so none is made."""


class Reason(StrEnum):
    """Every reason that a condition can carry. `reasons.EXPLANATIONS` says what each means and what to do."""

    # what the operator sees
    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    INVALID_TEMPLATE = "InvalidTemplate"
    QUEUED = "Queued"
    SUSPENDED = "Suspended"
    PODS_PENDING = "PodsPending"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    SECRET_MISSING = "SecretMissing"
    VOLUME_MISSING = "VolumeMissing"
    QUOTA_EXCEEDED = "QuotaExceeded"
    ADMISSION_REFUSED = "AdmissionRefused"
    STAGING = "Staging"
    PREPARING = "Preparing"
    TRAINING = "Training"
    SAVING = "Saving"
    COMPLETED = "Completed"
    RESTARTING = "Restarting"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
    OUT_OF_MEMORY = "OutOfMemory"
    DISRUPTED = "Disrupted"
    PROGRESS_CURRENT = "ProgressCurrent"
    EARLIER_ATTEMPT = "EarlierAttempt"
    TRAINER_SILENT = "TrainerSilent"
    GUARD_ARMED = "GuardArmed"
    # what the trainer's guard has found
    HELD_OUT_REWARD_FELL = "HeldOutRewardFell"
    KL_TOO_HIGH = "KlTooHigh"
    FACES_VANISHED = "FacesVanished"
    # what the trainer image reports
    BAD_USAGE = "BadUsage"
    BAD_CONFIGURATION = "BadConfiguration"
    BUCKET_NOT_FOUND = "BucketNotFound"
    OBJECT_NOT_FOUND = "ObjectNotFound"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    STAGED_FILE_CORRUPT = "StagedFileCorrupt"
    DISK_TOO_SMALL = "DiskTooSmall"
    UNSAFE_PATH = "UnsafePath"
    HUB_UNAVAILABLE = "HubUnavailable"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_UNKNOWN = "ModelUnknown"
    BAD_DATASET = "BadDataset"
    NO_FACE_IN_FIRST_FRAME = "NoFaceInFirstFrame"
    DIVERGED = "Diverged"
    IO_FAILED = "IoFailed"
    TERMINATED = "Terminated"
    TRAINER_FAILED = "TrainerFailed"


class TerminationMessage(ApiModel):
    """What a container of the trainer image leaves in its termination message, as JSON. Image and operator may differ in age,
    so fields that this version does not know are ignored."""

    model_config = ConfigDict(extra="ignore")

    reason: Reason
    """Why it failed."""
    message: str = Field(max_length=MESSAGE_MAX_CHARACTERS)
    """What happened, naming field or file and value."""
    hint: str = Field(default="", max_length=MESSAGE_MAX_CHARACTERS)
    """What to do."""
    exit_code: int = Field(ge=0, le=255)
    """The container's exit code."""
    rank: int | None = Field(default=None, ge=0, le=LARGEST_RANK)
    """Rank that failed first."""
    time: float = Field(default=0.0, ge=0)
    """Seconds since the epoch at which it failed; the smallest among the pods is the first failure."""
    log_tail: str = Field(default="", max_length=LOG_TAIL_MAX_CHARACTERS)
    """The last lines that it logged, without secrets and control characters. The last field: see `parse`."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a termination message; None when it is not one (any process may have written it).

        Of a pod with more than three containers the kubelet keeps less than was written; then only the log is lost.
        """
        for candidate in (text, text.rpartition(', "logTail"')[0] + "}"):
            try:
                return cls.model_validate(json.loads(candidate))
            except (ValueError, RecursionError):  # the latter is what json makes of thousands of brackets
                continue
        return None


class RewardFLError(Exception):
    """An error that a user can act upon.

    Args:
        reason: what the condition will say.
        message: what happened, naming field or file and value. Never holds a secret.
        hint: what to do.
        exit_code: the process's exit code; decides whether Kubernetes tries again.
    """

    def __init__(self, reason: Reason, message: str, hint: str = "", exit_code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(f"{message} {hint}".strip())
        self.reason, self.message, self.hint, self.exit_code = reason, message, hint, exit_code

    def termination_message(self, rank: int | None = None, time: float = 0.0) -> TerminationMessage:
        """Return the error as the container leaves it behind."""
        return TerminationMessage(
            reason=self.reason,
            message=self.message[:MESSAGE_MAX_CHARACTERS],
            hint=self.hint[:MESSAGE_MAX_CHARACTERS],
            exit_code=int(self.exit_code),
            rank=rank,
            time=time,
        )
