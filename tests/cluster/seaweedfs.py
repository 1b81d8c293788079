"""A real S3 server with authentication for tests and the demo: SeaweedFS, of which only the S3 endpoint is meant to be used."""

import json
import secrets
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .paths import program
from .report import say, wait_until
from .slots import Slot

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
_LOOPBACK = "127.0.0.1"
_READY_SECONDS = 60
# A volume is a file that grows; a small limit keeps many buckets on a small disk, many volumes keep them all writable.
_VOLUME_MEGABYTES = 1024
_VOLUME_COUNT = 1000


class SeaweedFS:
    """A running S3 server that this process owns. Use it as a context manager, or call `stop`.

    Attributes:
        endpoint: its URL, for pods (when bound to a cluster's bridge address) and for this machine.
        access_key: the one identity's access key; anonymous and unknown callers are refused.
        secret_key: its secret key.
    """

    def __init__(self, slot: Slot, endpoint: str) -> None:
        self._slot = slot
        self.endpoint = endpoint
        self.access_key = secrets.token_hex(10)
        self.secret_key = secrets.token_hex(20)

    @classmethod
    def start(cls, bind_address: str = _LOOPBACK) -> Self:
        """Start a server with an empty store and wait until it answers.

        Args:
            bind_address: an address of this machine, such as `LocalCluster.bridge_address`; the server listens there and on
                loopback.

        Raises:
            ClusterError: it does not start; nothing is left running.
        """
        slot = Slot.acquire()
        try:
            ports = _free_ports(8)
            server = cls(slot, f"http://{bind_address}:{ports[0]}")
            server._launch(bind_address, ports)
        except BaseException:
            slot.clear()
            raise
        say(f"S3 server ready: {server.endpoint}")
        return server

    def client(self) -> "S3Client":
        """A boto3 client with the server's credentials."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}, proxies={}),
        )

    def stop(self) -> None:
        """Stop the server and remove its data."""
        self._slot.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _launch(self, bind_address: str, ports: list[int]) -> None:
        folder, processes = self._slot.folder, self._slot.processes
        (folder / "data").mkdir()
        identities = folder / "identities.json"
        identities.touch(mode=0o600)
        identities.write_text(json.dumps(self._identities()))
        self._slot.claim(_sockets(ports))
        processes.spawn("weed", _command(folder, identities, bind_address, ports), environment={"HOME": str(folder)})

        def answers() -> bool:
            processes.require_running()
            return _is_healthy(f"{self.endpoint}/healthz")

        wait_until(answers, f"the S3 server at {self.endpoint} answers", timeout_seconds=_READY_SECONDS)

    def _identities(self) -> dict[str, object]:
        credentials = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        return {"identities": [{"name": "rewardfl", "credentials": credentials, "actions": actions}]}


def _sockets(ports: list[int]) -> list[Path]:
    """The sockets that weed makes at a place that cannot be set, and leaves behind when killed."""
    parts = zip(("s3", "master", "volume", "filer"), ports[1::2], strict=True)
    return [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in parts]


def _command(folder: Path, identities: Path, bind_address: str, ports: list[int]) -> list[str]:
    """The command line: all parts in one process; each part's gRPC port is named, else weed takes its HTTP port + 10000."""
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    return [
        program("weed"),
        "-logtostderr=true",
        "server",
        f"-dir={folder / 'data'}",
        f"-ip={_LOOPBACK}",
        f"-ip.bind={_LOOPBACK}",
        f"-master.port={master}",
        f"-master.port.grpc={master_grpc}",
        f"-master.volumeSizeLimitMB={_VOLUME_MEGABYTES}",
        "-master.telemetry=false",
        f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}",
        f"-volume.max={_VOLUME_COUNT}",
        "-filer",
        f"-filer.port={filer}",
        f"-filer.port.grpc={filer_grpc}",
        f"-filer.localSocket={folder / 'filer.sock'}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3_grpc}",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-s3.ip.bind={bind_address}",
        f"-s3.config={identities}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, on any address of the machine."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
