"""SIGTERM while training: the run goes on to the end of its step, where all ranks agree to save and stop.

Kubernetes sends it when a pod is deleted, evicted or preempted, torchrun when a rank has died; only some ranks may get it.
"""

import logging
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

import torch
from torch import distributed

from rewardfl_api.errors import RewardFLError
from rewardfl_api.spec import DEFAULT_GRACE_PERIOD_SECONDS, GRACE_PERIOD_VARIABLE

from .environment import Process
from .failures import Terminated

MARGIN_SECONDS, MARGIN_SHARE = 60, 0.2
"""Left of the grace period for the launcher, and for whatever comes after the upload; of a short one only this share."""

logger = logging.getLogger(__name__)


def upload_seconds() -> float:
    """Return the seconds from SIGTERM until a checkpoint has to be uploaded: the pod's grace period less a margin."""
    grace = float(os.environ.get(GRACE_PERIOD_VARIABLE) or DEFAULT_GRACE_PERIOD_SECONDS)
    return grace - min(MARGIN_SECONDS, MARGIN_SHARE * grace)


class StopRequest:
    """Turns SIGTERM into a request while the block runs; outside of it, SIGTERM ends the process at once."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._requested_at: float | None = None

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. A collective call."""
        return self.agreed_with(False)[0]

    def agreed_with(self, vote: bool) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether any gives this vote. A collective call; two numbers."""
        votes = torch.tensor([float(self._requested_at is not None), float(vote)], device=self.process.device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        asked, voted = votes.tolist()
        return bool(asked), bool(voted)

    def seconds_left(self) -> float:
        """Return the seconds until a checkpoint has to be uploaded."""
        asked_at = time.monotonic() if self._requested_at is None else self._requested_at
        return max(0.0, asked_at + upload_seconds() - time.monotonic())

    def __enter__(self) -> Self:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._requested_at is None or isinstance(error, RewardFLError | Terminated):
            return
        # The request came too late for the last step; or a collective broke off where another rank has died or stopped,
        # which is no failure of this one.
        raise Terminated from error

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        if self._requested_at is None:
            self._requested_at = time.monotonic()
