"""`rewardfl stage` against a real S3 server: what it fetches, says and leaves, also when it is stopped in the middle."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rewardfl_api.errors import ExitCode
from tests.integration.cli.commands import at_a_terminal, rewardfl
from tests.integration.fault_proxy import Exchange, fault_proxy
from tests.integration.operator_harness import manifest
from tests.integration.staging.buckets import HIGH, LOW, SHARD_BYTES, TEXT_ENCODER, VAE, Bucket, wait_for

PROGRAM = (
    "import sys; sys.argv = ['rewardfl', *sys.argv[1:]]\n"
    "from rewardfl_api import cli\n"
    "try: cli.main()\n"
    "finally: print('torch' in sys.modules, 'kubernetes' in sys.modules, file=sys.stderr)"
)


def job(bucket: Bucket, folder: Path, endpoint: str | None = None, **training: Any) -> str:
    """Write the manifest of a job whose reward models lie on a claim that only its pods have; return the file."""
    root = f"s3://{bucket.name}"
    given = {
        "modelPaths": [",".join(f"{root}/{key}" for key in HIGH), *(f"{root}/{key}" for key in (LOW, TEXT_ENCODER, VAE))],
        "rewardModelPath": "/mnt/only-in-the-pods/antelopev2",
        "tokenizerPath": f"{root}/google/umt5-xxl/",
        **training,
    }
    places = {"dataset": f"{root}/faces/", "output": f"{root}/results/", "storage": {"endpoint": endpoint or bucket.endpoint}}
    file = folder / "job.yaml"
    file.write_text(json.dumps(manifest("face", **places, training=given)), encoding="utf-8")
    return str(file)


def is_cached(folder: Path, content: bytes) -> bool:
    """Whether the cache holds a file of this content; they lie under their SHA-256."""
    return any(folder.rglob(f"*{hashlib.sha256(content).hexdigest()}"))


def test_a_job_is_staged_told_where_it_lies_and_not_fetched_twice(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, os.urandom(SHARD_BYTES))
    command = [sys.executable, "-c", PROGRAM, "stage", "-f", job(bucket, tmp_path), "--to", str(tmp_path / "models")]
    first = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines()[-1] == "False False"
    lines = first.stdout.splitlines()
    where = lines.index(f"spec.training.modelPaths[1]=s3://{bucket.name}/{LOW}") + 1
    assert Path(lines[where].strip()).read_bytes() == bucket.content[LOW]
    assert "rewardModelPath" not in first.stdout
    assert "were there already" not in lines[-1]

    again = rewardfl("stage", "-f", job(bucket, tmp_path), "--to", str(tmp_path / "models"), "-o", "json")

    answer = json.loads(again.stdout)
    assert answer["filesCached"] == answer["filesDone"] > 5
    assert answer["bytesCached"] == answer["bytesDone"] > SHARD_BYTES
    paths = {source["source"]: (source["field"], source["paths"]) for source in answer["sources"]}
    field, (high,) = paths[f"s3://{bucket.name}/{HIGH[0]}"]
    assert (field, Path(high).read_bytes()) == ("spec.training.modelPaths[0]", bucket.content[HIGH[0]])
    _, (faces,) = paths[f"s3://{bucket.name}/faces/"]
    assert (Path(faces) / "metadata.csv").read_bytes() == bucket.content["faces/metadata.csv"]


def test_ctrl_c_ends_it_with_130_and_the_same_command_goes_on(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, os.urandom(SHARD_BYTES))

    def hold(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == LOW:
            time.sleep(20)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(hold)
        command = ["stage", "-f", job(bucket, tmp_path, proxy.endpoint), "--to", str(tmp_path / "models")]
        program = [sys.executable, "-m", "rewardfl_api.cli", *command]
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: any(seen.key == LOW for seen in proxy.contents()), "the shard is asked for")
            wait_for(lambda: list((tmp_path / "models").rglob(sha256(bucket.content[VAE]).hexdigest())), "another file is there")
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=30)
        assert time.monotonic() - began < 10
        assert (process.returncode, said) == (130, "")
        assert errors == "rewardfl stage: stopped; the same command goes on from here\n"

        proxy.before.clear()
        before = len(proxy.contents())
        assert rewardfl(*command).exit_code == 0
        assert VAE not in [seen.key for seen in proxy.contents()[before:]]


@pytest.mark.parametrize(
    ("training", "code", "said"),
    [
        (
            {"modelPaths": ["s3://{name}/none.pth"]},
            ExitCode.MISSING_INPUT,
            "rewardfl stage: training.modelPaths[0]=s3://{name}/none.pth: neither a file nor a folder",
        ),
        (
            {"modelPaths": ["s3://no-such-bucket-at-all/x.pth"]},
            ExitCode.MISSING_INPUT,
            "rewardfl stage: training.modelPaths[0]=s3://no-such-bucket-at-all/x.pth: the bucket does not exist",
        ),
        ({"numFrames": 80}, ExitCode.BAD_CONFIGURATION, "spec.training.numFrames=80: must be 4k+1"),
    ],
)
def test_what_is_wrong_is_one_line_and_its_exit_code(
    tmp_path: Path, bucket: Bucket, training: dict[str, Any], code: ExitCode, said: str
) -> None:
    text = json.dumps(training).replace("{name}", bucket.name)
    command = ["stage", "-f", job(bucket, tmp_path, **json.loads(text)), "--to", str(tmp_path / "models")]
    done = subprocess.run(
        [sys.executable, "-m", "rewardfl_api.cli", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert said.replace("{name}", bucket.name) in done.stderr


def test_refused_credentials_say_what_to_set_in_the_shell(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "this-is-a-wrong-credential")
    command = ["stage", "-f", job(bucket, tmp_path), "--to", str(tmp_path / "models")]
    done = subprocess.run(
        [sys.executable, "-m", "rewardfl_api.cli", *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == ExitCode.BAD_CONFIGURATION
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in done.stderr
    assert "this-is-a-wrong-credential" not in done.stderr


def test_at_a_terminal_bars_are_drawn_and_the_paths_stand_at_the_end(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, os.urandom(SHARD_BYTES))
    released: list[bool] = []

    def hold(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == LOW and "bytes=0-" not in exchange.headers.get("range", ""):
            wait_for(lambda: released, "the bar is drawn")

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(hold)
        file = job(bucket, tmp_path, proxy.endpoint)
        shown, code = at_a_terminal(
            ["stage", "-f", file, "--to", str(tmp_path / "models")],
            [(b"low_noise_model/diffusion_pytorch_model.safetensors", lambda: released.append(True))],
        )
    text = shown.decode()
    assert code == 0
    assert "━" in text
    assert f"spec.dataset=s3://{bucket.name}/faces/" in text
    assert "fetched" in text.splitlines()[-1]
