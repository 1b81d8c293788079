"""The main job, run once for all tests that look at it: `make demo CLUSTER=current` where a demo ran before.

The program is the one that people start; what it does to the cluster is seen beside it, through kubectl and S3.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from examples.demo import read_manifest
from tests.cluster.paths import REPOSITORY
from tests.cluster.report import ClusterError, wait_until
from tests.cluster.stack import BUCKET, Stack

DEMO = [sys.executable, "-m", "examples.demo", "--cluster", "current"]
JOB_TIMEOUT_SECONDS = 900
REPLACED_TIMEOUT_SECONDS = 120
OUTPUT = "results/face-tiny/"
LEFT_OVER = "checkpoints/step-15/of-an-earlier-demo"
"""A file in the output, where an earlier demo has left its checkpoints."""
INTERRUPTED = "checkpoints/step-16/lora.safetensors"
"""A file whose upload was cut off when the earlier demo was killed."""


class DemoRun:
    """The demo's job: every status that it went through, what the program said, and what it left in the bucket.

    Args:
        stack: the cluster that the demo finds, with the operator in place.
        environment: that of a user whose kubectl, helm and S3 service it is.

    Raises:
        ClusterError: the program ended before its job began, or the job did not finish in time.
    """

    def __init__(self, stack: Stack, environment: Mapping[str, str]) -> None:
        self.stack = stack
        self.manifest = read_manifest(stack.storage_spec())
        self.name: str = self.manifest["metadata"]["name"]
        earlier = self._leave_an_earlier_demo()
        with subprocess.Popen(
            DEMO, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as demo:
            try:
                wait_until(
                    lambda: demo.poll() is not None or self._uid() not in ("", earlier),
                    "the demo replaces the earlier job",
                    timeout_seconds=REPLACED_TIMEOUT_SECONDS,
                )
                self.statuses = list(stack.statuses(self.name, JOB_TIMEOUT_SECONDS)) if demo.poll() is None else []
                self.stdout, self.stderr = demo.communicate(timeout=REPLACED_TIMEOUT_SECONDS)
            finally:
                demo.kill()
        self.exit_code = demo.returncode
        if not self.statuses:
            raise ClusterError(f"the demo ended with {self.exit_code} before its job began: {self.stderr}")
        selector = f"rewardfl.io/job-name={self.name}"
        self.pods: list[dict[str, Any]] = json.loads(stack.cluster.kubectl("get", "pods", "-l", selector, "--output=json"))[
            "items"
        ]
        listing = stack.storage.client().list_objects_v2(Bucket=BUCKET, Prefix=OUTPUT)
        self.keys = [item["Key"].removeprefix(OUTPUT) for item in listing.get("Contents", [])]

    @property
    def last(self) -> dict[str, Any]:
        return self.statuses[-1]

    def read(self, key: str) -> bytes:
        return bytes(self.stack.storage.client().get_object(Bucket=BUCKET, Key=OUTPUT + key)["Body"].read())

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.read("metrics.jsonl").splitlines()]

    def _leave_an_earlier_demo(self) -> str:
        """Leave what an earlier demo has: a job of the same name that has failed, a file, and half an upload. Returns its uid."""
        failing = read_manifest(self.stack.storage_spec())
        failing["spec"]["training"]["modelName"] = "wan9_9"
        self.stack.apply(failing)
        self.stack.finish(self.name, REPLACED_TIMEOUT_SECONDS)
        storage = self.stack.storage.client()
        storage.put_object(Bucket=BUCKET, Key=OUTPUT + LEFT_OVER, Body=b"stale")
        storage.create_multipart_upload(Bucket=BUCKET, Key=OUTPUT + INTERRUPTED)
        return self._uid()

    def unfinished_uploads(self) -> list[str]:
        """Return the keys below the output whose upload was begun and not finished."""
        found = self.stack.storage.client().list_multipart_uploads(Bucket=BUCKET, Prefix=OUTPUT)
        return [item["Key"] for item in found.get("Uploads", [])]

    def _uid(self) -> str:
        """Return the uid of the job that is there now; empty when there is none."""
        which = ("rewardfljob", self.name, "--ignore-not-found", "--output=jsonpath={.metadata.uid}")
        return self.stack.cluster.kubectl("get", *which)
