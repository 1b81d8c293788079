"""What can go wrong between a user and a cluster, each as one line that says what to do, with an exit code."""

from typing import TYPE_CHECKING

from ..errors import ExitCode
from ..schema import Problem

if TYPE_CHECKING:
    from .view import Job


class ClientError(Exception):
    """Something that a user can act upon.

    Args:
        message: what happened, naming the object or the option and its value.
        hint: what to do.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint = message, hint


class ConfigurationError(ClientError):
    """The kubeconfig, or a context in it, cannot be used."""

    exit_code = ExitCode.BAD_CONFIGURATION


class UnreachableError(ClientError):
    """No answer, or only errors, from the API server."""

    exit_code = ExitCode.UNAVAILABLE


class ForbiddenError(ClientError):
    """The API server knows the user and says no, or does not know the user."""

    exit_code = ExitCode.BAD_CONFIGURATION


class NotFoundError(ClientError):
    """There is no such object, or no such kind."""

    exit_code = ExitCode.MISSING_INPUT


class ExistsError(ClientError):
    """An object of that name exists already."""


class RefusedError(ClientError):
    """The API server refuses the object; the message is its own."""

    exit_code = ExitCode.BAD_CONFIGURATION


class DeletedError(ClientError):
    """The job was deleted while it was watched."""


class InvalidJobError(ClientError):
    """What was to be submitted is wrong; nothing was sent.

    Attributes:
        problems: each field that is wrong, with its value and what to do.
    """

    exit_code = ExitCode.BAD_CONFIGURATION

    def __init__(self, message: str, hint: str = "", problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message, hint)
        self.problems = problems


class JobFailedError(ClientError):
    """The job that was waited for has failed.

    Attributes:
        job: how it ended.
        reason: why, in one word of docs/operations.md.
    """

    def __init__(self, job: "Job", hint: str) -> None:
        super().__init__(f"{job.name} failed: {job.reason}: {job.message.rstrip('.')}", hint)
        self.job, self.reason = job, job.reason


class MissingExtraError(ClientError):
    """A package that this needs is not installed."""
