"""The S3 client: how it connects, how long it tries, and which endpoints it refuses. Credentials come from boto3's chain only."""

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.spec import Storage
from rewardfl_trainer.storage_errors import storage_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MAX_CONNECTIONS = 32
ATTEMPTS_VARIABLE = "REWARDFL_STORAGE_ATTEMPTS"
TIMEOUT_VARIABLE = "REWARDFL_STORAGE_TIMEOUT_SECONDS"
ADDRESSING_VARIABLE = "REWARDFL_S3_ADDRESSING_STYLE"
_METADATA_SERVICE_IPV6 = ipaddress.ip_address("fd00:ec2::254")
"""AWS's instance metadata over IPv6 is a unique local address, not a link-local one."""


@dataclass(frozen=True)
class Patience:
    """How long a request is tried. The defaults give up on a dead endpoint after less than two minutes."""

    attempts: int = 5
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 20.0

    @classmethod
    def from_environment(cls) -> "Patience":
        """Return the defaults, changed by REWARDFL_STORAGE_ATTEMPTS and REWARDFL_STORAGE_TIMEOUT_SECONDS (both timeouts)."""
        timeout = os.environ.get(TIMEOUT_VARIABLE)
        return cls(
            attempts=int(_number(ATTEMPTS_VARIABLE, os.environ.get(ATTEMPTS_VARIABLE, str(cls.attempts)))),
            connect_timeout_seconds=_number(TIMEOUT_VARIABLE, timeout) if timeout else cls.connect_timeout_seconds,
            read_timeout_seconds=_number(TIMEOUT_VARIABLE, timeout) if timeout else cls.read_timeout_seconds,
        )


def make_client(
    storage: Storage,
    parameter: str = "storage",
    patience: Patience | None = None,
    session: botocore.session.Session | None = None,
) -> "S3Client":
    """Return a client of the service that `storage` names; safe to share between threads. Sends nothing yet.

    Args:
        storage: the service.
        parameter: what the user has to change when it cannot be used.
        patience: how long a request is tried. None: as the environment says.
        session: whose credentials it uses. None: one of its own.

    Raises:
        RewardFLError: the endpoint is on a link-local address, or the credentials' configuration is broken (exit code 78).
    """
    patience = patience or Patience.from_environment()
    custom = storage.endpoint is not None
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": patience.attempts},
        connect_timeout=patience.connect_timeout_seconds,
        read_timeout=patience.read_timeout_seconds,
        max_pool_connections=MAX_CONNECTIONS,
        s3={"addressing_style": _addressing_style()},
        # checksum trailers, newer than many S3-compatible services, are sent only where they are known to be understood
        request_checksum_calculation="when_required" if custom else "when_supported",
        response_checksum_validation="when_required" if custom else "when_supported",
        user_agent_extra="rewardfl",
    )
    with storage_errors(parameter, storage.endpoint or storage.region, storage.endpoint or "AWS"):
        try:
            client = boto3.session.Session(botocore_session=session).client(
                "s3", endpoint_url=storage.endpoint, region_name=storage.region, config=config
            )
        except ValueError as error:
            raise _bad(f"storage.endpoint={storage.endpoint}: {error}") from error
    refuse_link_local(client.meta.endpoint_url, "storage.endpoint")
    return client


def refuse_link_local(url: str, parameter: str) -> None:
    """Refuse a URL whose host is, or resolves to, a link-local address: cloud metadata services live there.

    Raises:
        RewardFLError: it does (exit code 78). A host that cannot be resolved passes; the request itself will fail.
    """
    host = urlsplit(url).hostname or ""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        if mapped.is_link_local or mapped == _METADATA_SERVICE_IPV6:
            raise _bad(f"{parameter}={url}: {host} is the link-local address {address}, which is refused")


def endpoint_of(client: "S3Client") -> str:
    """Return the URL of the service, for messages."""
    return client.meta.endpoint_url


def _addressing_style() -> Literal["auto", "path", "virtual"]:
    """Return how the bucket is named in URLs. auto: in the path at custom endpoints, in the host name at AWS."""
    match style := os.environ.get(ADDRESSING_VARIABLE, "auto"):
        case "auto" | "path" | "virtual":
            return style
    raise _bad(f"{ADDRESSING_VARIABLE}={style}: must be auto, path or virtual")


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if (value < 1 and name == ATTEMPTS_VARIABLE) or value <= 0:
        raise _bad(f"{name}={text}: must be a positive number")
    return value


def _bad(message: str) -> RewardFLError:
    return RewardFLError(Reason.BAD_CONFIGURATION, message, "Correct it.", ExitCode.BAD_CONFIGURATION)
