"""`make demo`: the main job, from an empty machine to the files that it wrote.

It uses the product as a person would: helm, kubectl, an S3 client. On this machine by default; with `--cluster current` on
the current kubectl context, with the storage that the environment names.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import yaml

from docker.load import built_images
from examples.current_cluster import current_stack
from tests.cluster import ClusterError
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import say
from tests.cluster.stack import BUCKET, FINISHED_PHASES, Stack

MANIFEST = REPOSITORY / "examples" / "rewardfljob-tiny.yaml"
RESULTS = REPOSITORY / "demo-results"
JOB_TIMEOUT_SECONDS = 15 * 60
POLL_SECONDS = 1.0
AGE_COLUMN = -1


def main() -> int:
    """Run the demo; 0 when the job succeeded."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--cluster", choices=("local", "current"), default="local", help="where to run it")
    parser.add_argument("--images", choices=("", "local"), default="", help="local: from the images, built with BASE=local")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    start = time.monotonic()
    try:
        with place(options.cluster, options.images) as stack:
            succeeded = run(stack)
    except ClusterError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; everything that was started is stopped", file=sys.stderr)
        return 130
    say(f"{'done' if succeeded else 'failed'} after {time.monotonic() - start:.0f} s")
    return 0 if succeeded else 1


@contextmanager
def place(cluster: str, images: str) -> Iterator[Stack]:
    """Yield a cluster with the operator, models and dataset in place."""
    loader = built_images if images else None
    with Stack.start(loader) if cluster == "local" else current_stack() as stack:
        yield stack


def run(stack: Stack) -> bool:
    """Apply the job, show its line as it changes, fetch the results; whether it succeeded."""
    manifest = read_manifest(stack.storage_spec())
    name = manifest["metadata"]["name"]
    # Left by a demo before this one, on a cluster that outlives them: a job goes on from the checkpoints of its output.
    stack.cluster.kubectl("delete", "rewardfljob", name, "--ignore-not-found", timeout_seconds=120)
    clear(stack, manifest["spec"]["output"])
    say(f"kubectl apply -f {MANIFEST.relative_to(REPOSITORY)}")
    stack.apply(manifest)
    say("kubectl get rewardfljobs --watch")
    follow(stack, name)
    status = stack.job(name)["status"]
    if status["phase"] != "Succeeded":
        for condition in status["conditions"]:
            if condition["type"] == "Failed" and condition["status"] == "True":
                print(f"\n{condition['reason']}: {condition['message']}")
        return False
    fetch(stack, name, manifest["spec"]["output"])
    return True


def read_manifest(storage: dict[str, Any]) -> dict[str, Any]:
    """Return the example, its storage replaced by what is there."""
    manifest: dict[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    manifest["spec"]["storage"] = storage
    return manifest


def follow(stack: Stack, name: str) -> None:
    """Print the job's line of `kubectl get rewardfljobs` whenever anything but its age has changed, until it has finished."""
    end = time.monotonic() + JOB_TIMEOUT_SECONDS
    shown: list[str] = []
    while time.monotonic() < end:
        header, line = stack.cluster.kubectl("get", "rewardfljobs", name).rstrip().splitlines()[:2]
        if not shown:
            print(header)
        if line.split()[:AGE_COLUMN] != shown:
            shown = line.split()[:AGE_COLUMN]
            print(line, flush=True)
        if any(phase in shown for phase in FINISHED_PHASES):
            return
        time.sleep(POLL_SECONDS)
    raise ClusterError(f"{name} did not finish in {JOB_TIMEOUT_SECONDS} s: see `kubectl describe rewardfljob {name}`")


def clear(stack: Stack, output: str) -> None:
    """Remove the job's output folder from the bucket."""
    client = stack.storage.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=output.removeprefix(f"s3://{BUCKET}/")):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])


def fetch(stack: Stack, name: str, output: str) -> None:
    """Copy the job's output folder from the bucket and name the files."""
    prefix = output.removeprefix(f"s3://{BUCKET}/")
    target = RESULTS / name
    client = stack.storage.client()
    print(f"\nresults, fetched from {output}")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for item in page.get("Contents", []):
            path = target / item["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(BUCKET, item["Key"], str(path))
            print(f"  {path.relative_to(REPOSITORY)}  {item['Size']:,} bytes")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
