"""What the staging tests share: a bucket with what a small job needs, its configuration, and the program that stages it."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rewardfl_api.errors import RewardFLError, TerminationMessage
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.staging.cache import Cache
from rewardfl_trainer.staging.stage import stage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SHARD_BYTES = 17 * 2**20
"""Three ranges of the fetcher and two parts of an upload, the last of them not full."""

MODEL = "Wan2.2-I2V-A14B"
HIGH = [f"{MODEL}/high_noise_model/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
LOW = f"{MODEL}/low_noise_model/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = f"{MODEL}/models_t5_umt5-xxl-enc-bf16.pth"
VAE = f"{MODEL}/Wan2.1_VAE.pth"


@dataclass
class Bucket:
    """A bucket of the test's own, with what a small job needs in it."""

    name: str
    client: "S3Client"
    endpoint: str
    content: dict[str, bytes]

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)
        self.content[key] = body


def configuration(tmp_path: Path, bucket: Bucket, endpoint: str | None = None, **changes: Any) -> TrainerConfig:
    """A job that takes everything from the bucket."""
    root = f"s3://{bucket.name}"
    training = {
        "model_paths": [[f"{root}/{key}" for key in HIGH], *(f"{root}/{key}" for key in (LOW, TEXT_ENCODER, VAE))],
        "reward_model_path": f"{root}/antelopev2/",
        "tokenizer_path": f"{root}/google/umt5-xxl/",
        "min_timestep_boundary": 0.9,
        **changes.pop("training", {}),
    }
    given = {
        "storage": {"endpoint": endpoint or bucket.endpoint},
        "dataset": f"{root}/faces/",
        "output": f"{root}/results/",
        "cache_dir": str(tmp_path / "cache"),
        "work_dir": str(tmp_path / "work"),
        "training": training,
        **changes,
    }
    return TrainerConfig.model_validate(given)


def content_at(path: str) -> bytes:
    return Path(path).read_bytes()


def names_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def failure_of(config: TrainerConfig) -> RewardFLError:
    with pytest.raises(RewardFLError) as caught:
        stage(config)
    return caught.value


def put_in_parts(bucket: Bucket, body: bytes) -> None:
    """Upload the shard in several parts: S3 has no checksum of the whole then that could show a mixture."""
    bucket.client.upload_fileobj(io.BytesIO(body), bucket.name, LOW)
    bucket.content[LOW] = body


def run_stage(config: TrainerConfig, tmp_path: Path, *prefix: str) -> "subprocess.Popen[str]":
    """Start the program of the init container."""
    file = tmp_path / f"config-{time.monotonic_ns()}.yaml"
    file.write_text(config.dump(), encoding="utf-8")
    command = [*prefix, sys.executable, "-m", "rewardfl_trainer.staging", "--config", str(file)]
    environment = {**os.environ, "TERMINATION_LOG": str(tmp_path / "termination-log")}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def message_left(tmp_path: Path) -> TerminationMessage:
    message = TerminationMessage.parse((tmp_path / "termination-log").read_text(encoding="utf-8"))
    assert message is not None
    return message


def wait_for(condition: Callable[[], object], what: str, timeout_seconds: float = 30) -> None:
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end, f"timed out waiting until {what}"
        time.sleep(0.02)


def whole_files(config: TrainerConfig) -> set[str]:
    """The names of the files whose contents the cache has."""
    cache = Cache(Path(config.cache_dir))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (cache.own / "sources").iterdir()]
    return {record["place"][-1] for record in records if cache.is_intact(record["sha256"])}
