"""One way of fetching a bucket, in a process of its own: `python -m tests.benchmarks.staging_child {ours|unhashed|boto3} ...`.

`ours` is what an init container runs, from the configuration file on; beside that it takes the CPU time of SHA-256 and prints it.
`unhashed` is the same but for SHA-256, in place of which it draws a name: what is left shows what verification costs.
`boto3` is what its documentation proposes: the transfer manager, with its defaults.
"""

import hashlib
import os
import secrets
import sys
import threading
import time
from pathlib import Path
from typing import Any


class TimedSha256:
    """SHA-256, with the CPU time that all of them took together."""

    seconds = 0.0
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._state = hashlib.sha256(usedforsecurity=False)

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""
        began = time.thread_time()
        self._state.update(data)
        taken = time.thread_time() - began
        with self._lock:
            TimedSha256.seconds += taken

    def hexdigest(self) -> str:
        """Return the checksum."""
        return self._state.hexdigest()


class NoSha256:
    """Takes no time and calls every content by another name."""

    def update(self, data: memoryview, /) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """Return a name."""
        return secrets.token_hex(32)


def unhashed(config_file: str) -> None:
    """Run the init container's program without SHA-256."""
    ours(config_file, NoSha256)


def ours(config_file: str, sha256: "type[TimedSha256 | NoSha256]" = TimedSha256) -> None:
    """Run the init container's program."""
    from rewardfl_trainer.staging import __main__ as program
    from rewardfl_trainer.staging import sums

    plain = sums.new_state

    def timed(kind: Any, size: int) -> Any:
        return sha256() if kind == sums.SHA256 else plain(kind, size)

    sums.new_state = timed
    sys.argv = ["staging", "--config", config_file]
    program.main(program.TailHandler())
    sys.stdout.write(f"{TimedSha256.seconds}\n")


def by_boto3(endpoint: str, bucket: str, folder: str) -> None:
    """Download every object of a bucket."""
    import boto3
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    client = boto3.client("s3", endpoint_url=endpoint)
    keys = [
        entry["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        for entry in page.get("Contents", [])
    ]
    Path(folder).mkdir()
    with create_transfer_manager(client, TransferConfig(preferred_transfer_client="classic")) as manager:
        transfers = [manager.download(bucket, key, str(Path(folder) / key)) for key in keys]
        for transfer in transfers:
            transfer.result()


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    {"ours": ours, "unhashed": unhashed, "boto3": by_boto3}[name](*arguments)
    sys.stdout.flush()
    os._exit(0)  # as the init container ends
