"""Lets the pods of a job find each other, whichever of them comes first and whatever an earlier attempt has left behind.

torchrun alone gives up after a minute when the pod that hosts the rendezvous is not there yet, and fails when it meets the
store of an attempt that is just ending. Pods stage at different speeds and start again at different times, so both are
ordinary. Without the operator's variables (a run by hand) nothing here does anything. It must not import torch.
"""

import logging
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

from rewardfl_api.errors import Reason, RewardFLError

RETRY_SECONDS = 2.0
CONNECT_SECONDS = 5.0
SETTLED_SECONDS = 60.0
"""An attempt that lasted longer had met; when it ends, the time for meeting begins anew."""

LOCALHOST = "localhost"
REJOINED = ("RendezvousClosedError", "RendezvousConnectionError", "RendezvousStateError")
"""torchrun's errors of a rendezvous that has ended, or whose host has. By name: importing torch takes seconds."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meeting:
    """Where the pods meet, as torchrun's PET_* variables and the Job controller's JOB_COMPLETION_INDEX say.

    Args:
        host: name of pod 0, by which all others know it.
        port: port of its rendezvous store.
        index: this pod's index.
        nodes: how many pods there are.
        timeout_seconds: how long to wait for the others.
    """

    host: str
    port: int
    index: int
    nodes: int
    timeout_seconds: float

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> "Meeting | None":
        """Read the variables; None when the operator has not set them."""
        endpoint, index = environment.get("PET_RDZV_ENDPOINT", ""), environment.get("JOB_COMPLETION_INDEX", "")
        host, _, port = endpoint.rpartition(":")
        if not host or not index.isdigit() or not port.isdigit():
            return None
        settings = dict(part.split("=", 1) for part in environment.get("PET_RDZV_CONF", "").split(",") if "=" in part)
        timeout = float(settings.get("join_timeout", "600"))
        return cls(host, int(port), int(index), int(environment.get("PET_NNODES", "1")), timeout)


def join(environment: MutableMapping[str, str], torchrun: Callable[[], None]) -> None:
    """Run `torchrun` once the pods can meet, and again when it met an attempt that was ending.

    Raises:
        RewardFLError: the others did not come in time.
        Exception: whatever `torchrun` raises that is no matter of the rendezvous.
    """
    meeting = Meeting.of(environment)
    if meeting is None:
        torchrun()
        return
    deadline = time.monotonic() + meeting.timeout_seconds
    while True:
        prepare(meeting, environment, deadline)
        began = time.monotonic()
        try:
            torchrun()
        except Exception as error:
            if time.monotonic() - began > SETTLED_SECONDS:
                deadline = time.monotonic() + meeting.timeout_seconds
            if type(error).__name__ not in REJOINED or time.monotonic() > deadline:
                raise
            logger.warning("%s: the rendezvous has ended; joining the next one", type(error).__name__)
            time.sleep(RETRY_SECONDS)
        else:
            return


def prepare(meeting: Meeting, environment: MutableMapping[str, str], deadline: float) -> None:
    """Wait until torchrun can reach the rendezvous (time.monotonic() < `deadline`), and tell it by which names."""
    is_host = meeting.index == 0
    own_name = _own_name(meeting)
    endpoint = LOCALHOST if is_host else meeting.host
    environment["PET_RDZV_ENDPOINT"] = f"{endpoint}:{meeting.port}"
    environment["PET_LOCAL_ADDR"] = own_name
    settings = [part for part in environment.get("PET_RDZV_CONF", "").split(",") if part and not part.startswith("is_host=")]
    environment["PET_RDZV_CONF"] = ",".join([*settings, f"is_host={str(is_host).lower()}"])
    if is_host:
        _wait(lambda: socket.getaddrinfo(own_name, None), f"its own name {own_name} to be known to the DNS", deadline, meeting)
    else:
        where = f"pod 0 to open the rendezvous at {meeting.host}:{meeting.port}"
        _wait(lambda: _connect(meeting.host, meeting.port), where, deadline, meeting)


def _own_name(meeting: Meeting) -> str:
    """The name by which the others reach this pod. Pod 0's sorts first, so rank 0 is in pod 0."""
    if meeting.nodes == 1:
        return LOCALHOST
    if meeting.index == 0:
        return meeting.host
    _, dot, service = meeting.host.partition(".")
    return f"{socket.gethostname()}{dot}{service}"


def _wait(attempt: Callable[[], object], what: str, deadline: float, meeting: Meeting) -> None:
    """Repeat `attempt` until it raises no OSError."""
    told = False
    while True:
        try:
            attempt()
        except OSError as error:
            if time.monotonic() > deadline:
                message = f"waited {meeting.timeout_seconds:.0f} s for {what}: {error}"
                hint = "See why the other pods do not run: kubectl get pods."
                raise RewardFLError(Reason.TRAINER_FAILED, message, hint) from error
            if not told:
                logger.info("waiting for %s", what)
                told = True
            time.sleep(RETRY_SECONDS)
        else:
            return


def _connect(host: str, port: int) -> None:
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
        pass
