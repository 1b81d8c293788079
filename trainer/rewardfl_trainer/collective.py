"""What ranks tell each other: work that one does for all (its result, or its error, reaches every rank), and a smallest value."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from rewardfl_api.errors import ExitCode, RewardFLError, TerminationMessage

from .environment import Process

ResultT = TypeVar("ResultT")


def on_main(process: Process, function: Callable[[], ResultT]) -> ResultT:
    """Run `function` on the main rank and return its result everywhere. A collective call.

    Raises:
        RewardFLError: what `function` raised, on every rank.
    """
    parcel: list[Any] = [None, None]
    if process.is_main:
        try:
            parcel = [function(), None]
        except RewardFLError as error:
            parcel = [None, error.termination_message().to_kubernetes()]
    distributed.broadcast_object_list(parcel, src=0)
    result, failure = parcel
    if failure is not None:
        message = TerminationMessage.model_validate(failure)
        raise RewardFLError(message.reason, message.message, message.hint, ExitCode(message.exit_code))
    return result  # type: ignore[no-any-return]


def smallest(process: Process, value: int) -> int:
    """Return the smallest of all ranks' values. A collective call."""
    values = [value] * process.world_size
    distributed.all_gather_object(values, value)
    return min(values)
