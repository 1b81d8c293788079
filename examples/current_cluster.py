"""The demo on the current kubectl context: its kubectl and helm, and the S3 service that the environment names."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import yaml

from tests.cluster import ClusterError
from tests.cluster.report import run, say
from tests.cluster.stack import BUCKET, Stack

ENDPOINT, ACCESS_KEY, SECRET_KEY = "DEMO_S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
VALUES = "DEMO_VALUES"
"""Optional: a values file for the chart, for example with the registry that holds your images."""


class CurrentCluster:
    """kubectl and helm as the user has them set up."""

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 60) -> str:
        """Run kubectl; ClusterError when it fails."""
        return run(["kubectl", *arguments], stdin=stdin, timeout_seconds=timeout_seconds)

    def helm(self, *arguments: str, timeout_seconds: float = 180) -> str:
        """Run helm; ClusterError when it fails."""
        return run(["helm", *arguments], timeout_seconds=timeout_seconds)


@dataclass(frozen=True)
class NamedStorage:
    """An S3 service that is reachable from here and from the cluster."""

    endpoint: str
    access_key: str
    secret_key: str

    def client(self) -> Any:
        """Return a boto3 client of it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=os.environ.get("AWS_REGION", "us-east-1"),
            config=botocore.config.Config(connect_timeout=5, retries={"max_attempts": 3}, s3={"addressing_style": "path"}),
        )


@contextmanager
def current_stack() -> Iterator[Stack]:
    """Yield the current context with the operator, models and dataset in place. They stay when the demo has ended.

    Raises:
        ClusterError: something is missing; the message names it.
    """
    missing = [f"the program {name}" for name in ("kubectl", "helm") if shutil.which(name) is None]
    missing += [f"the environment variable {name}" for name in (ENDPOINT, ACCESS_KEY, SECRET_KEY) if not os.environ.get(name)]
    if missing:
        raise ClusterError(f"CLUSTER=current needs {', '.join(missing)}")
    cluster = CurrentCluster()
    say(f"using the kubectl context {cluster.kubectl('config', 'current-context').strip()}")
    storage = NamedStorage(os.environ[ENDPOINT], os.environ[ACCESS_KEY], os.environ[SECRET_KEY])
    stack = Stack(cluster, storage)
    try:
        ensure_bucket(storage.client())
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        raise ClusterError(f"{ENDPOINT}={storage.endpoint}: {error}") from error
    values = os.environ.get(VALUES)
    stack.prepare(yaml.safe_load(Path(values).read_text(encoding="utf-8")) if values else {})
    yield stack


def ensure_bucket(client: Any) -> None:
    """Create the demo's bucket unless it is there."""
    try:
        client.head_bucket(Bucket=BUCKET)
    except botocore.exceptions.ClientError:
        client.create_bucket(Bucket=BUCKET)
