"""One real S3 server for the staging tests, and a bucket for each."""

import hashlib
from collections.abc import Iterator

import pytest

from rewardfl_trainer.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE
from tests.cluster import SeaweedFS
from tests.integration.staging.buckets import (
    HIGH,
    LOW,
    MODEL,
    TEXT_ENCODER,
    VAE,
    Bucket,
)


@pytest.fixture(scope="session")
def server() -> Iterator[SeaweedFS]:
    with SeaweedFS.start("127.0.0.1") as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv(ATTEMPTS_VARIABLE, "3")
    monkeypatch.setenv(TIMEOUT_VARIABLE, "20")


@pytest.fixture
def bucket(server: SeaweedFS, request: pytest.FixtureRequest) -> Bucket:
    name = "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    made = Bucket(name, server.client(), server.endpoint, {})
    made.client.create_bucket(Bucket=name)
    for key in (
        "faces/metadata.csv",
        "faces/videos/one two ü.mp4",
        "antelopev2/scrfd_10g_bnkps.onnx",
        "antelopev2/glintr100.onnx",
        "antelopev2/glintr100.onnx.data",
        "antelopev2/2d106det.onnx",
        "google/umt5-xxl/tokenizer.json",
        "google/umt5-xxl/tokenizer_config.json",
        f"{HIGH[0]}.config.json",
        *HIGH,
        LOW,
        f"{MODEL}/low_noise_model/README.md",
        TEXT_ENCODER,
        VAE,
    ):
        made.put(key, f"content of {key}".encode() * 50)
    return made
