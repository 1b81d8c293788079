"""Staging and uploads against a real S3 server, and against one whose answers a proxy spoils."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rewardfl_api.errors import ExitCode, Reason, RewardFLError, TerminationMessage
from rewardfl_api.trainer_config import TrainerConfig
from rewardfl_trainer.s3 import ATTEMPTS_VARIABLE, TIMEOUT_VARIABLE
from rewardfl_trainer.staging import localize
from rewardfl_trainer.staging.stage import stage
from rewardfl_trainer.storage import MARKER_NAME, Storage
from tests.cluster import SeaweedFS
from tests.integration.fault_proxy import Exchange, FaultProxy, fault_proxy

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SHARD_BYTES = 17 * 2**20
"""Two ranges of the fetcher and two parts of an upload, the second of them not full."""

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


@pytest.fixture(scope="module")
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
    """The files in the cache, without its own records."""
    root = Path(config.cache_dir)
    return {path.name for path in root.rglob("*") if path.is_file() and ".rewardfl" not in path.relative_to(root).parts}


def test_everything_a_job_names_is_staged_and_nothing_else(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)

    stage(config)
    local = localize(config)

    assert content_at(f"{local.dataset}/metadata.csv") == bucket.content["faces/metadata.csv"]
    assert content_at(f"{local.dataset}/videos/one two ü.mp4") == bucket.content["faces/videos/one two ü.mp4"]
    assert names_in(local.training.reward_model_path) == [
        "glintr100.onnx",
        "glintr100.onnx.data",
        "scrfd_10g_bnkps.onnx",
    ]
    assert names_in(local.training.tokenizer_path) == ["tokenizer.json", "tokenizer_config.json"]
    assert local.training.model_paths is not None
    models = [entry.split(",") for entry in local.training.model_paths]
    assert [[content_at(part) for part in parts] for parts in models] == [
        [bucket.content[key] for key in HIGH],
        [bucket.content[LOW]],
        [bucket.content[TEXT_ENCODER]],
        [bucket.content[VAE]],
    ]
    assert content_at(f"{models[0][0]}.config.json") == bucket.content[f"{HIGH[0]}.config.json"]
    assert not {"2d106det.onnx", "README.md"} & whole_files(config)


def test_a_second_start_reads_no_content(tmp_path: Path, bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        stage(config)
        assert proxy.contents()
        proxy.seen.clear()

        stage(config)

        assert proxy.seen
        assert proxy.contents() == []


def test_an_object_that_was_replaced_is_fetched_again(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    stage(config)
    bucket.put(VAE, b"another")

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == b"another"


def test_a_cached_file_that_was_tampered_with_is_fetched_again(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    vae = Path(stage(config)[f"s3://{bucket.name}/{VAE}"])
    vae.write_bytes(b"x" * len(bucket.content[VAE]))

    stage(config)

    assert vae.read_bytes() == bucket.content[VAE]


def test_models_may_be_listed_by_a_json_file_with_relative_paths(tmp_path: Path, bucket: Bucket) -> None:
    listed = [
        [key.removeprefix(f"{MODEL}/") for key in HIGH],
        "low_noise_model/",
        f"s3://{bucket.name}/{TEXT_ENCODER}",
        "*VAE.pth",
    ]
    bucket.put(f"{MODEL}/wan22_paths.json", json.dumps(listed).encode())
    config = configuration(tmp_path, bucket, training={"model_paths": [f"s3://{bucket.name}/{MODEL}/wan22_paths.json"]})

    stage(config)

    paths = localize(config).training.model_paths
    assert paths is not None
    assert [[Path(part).name for part in entry.split(",")] for entry in paths] == [
        [Path(key).name for key in HIGH],
        [Path(LOW).name],
        [Path(TEXT_ENCODER).name],
        [Path(VAE).name],
    ]


def test_a_pattern_means_the_files_that_match_it_now_and_not_those_of_an_earlier_start(tmp_path: Path, bucket: Bucket) -> None:
    pattern = f"s3://{bucket.name}/{MODEL}/high_noise_model/*.safetensors"
    config = configuration(tmp_path, bucket, training={"model_paths": [pattern]})
    assert len(stage(config)[pattern].split(",")) == 2
    bucket.client.delete_object(Bucket=bucket.name, Key=HIGH[1])

    assert [Path(path).name for path in stage(config)[pattern].split(",")] == [Path(HIGH[0]).name]


@pytest.mark.parametrize(
    ("changes", "reason", "exit_code", "named"),
    [
        ({"dataset": "s3://nope-nope/faces/"}, Reason.BUCKET_NOT_FOUND, 66, "dataset=s3://nope-nope/faces/"),
        ({"dataset": "s3://{bucket}/nope/"}, Reason.OBJECT_NOT_FOUND, 66, "dataset=s3://{bucket}/nope/"),
        ({"dataset": "s3://{bucket}/faces/metadata.csv"}, Reason.OBJECT_NOT_FOUND, 66, "nothing is there"),
        ({"dataset": "s3://{bucket}/google/"}, Reason.OBJECT_NOT_FOUND, 66, "metadata.csv"),
        ({"training": {"model_paths": ["s3://{bucket}/no.pth"]}}, Reason.OBJECT_NOT_FOUND, 66, "training.model_paths[0]=s3://{bucket}/no.pth"),
        ({"training": {"model_paths": ["s3://nope-nope/no.pth"]}}, Reason.BUCKET_NOT_FOUND, 66, "training.model_paths[0]=s3://nope-nope/no.pth"),
        ({"training": {"model_paths": ["s3://{bucket}/no.json"]}}, Reason.OBJECT_NOT_FOUND, 66, "training.model_paths=s3://{bucket}/no.json"),
        ({"training": {"model_paths": ["s3://{bucket}/faces/*.pth"]}}, Reason.OBJECT_NOT_FOUND, 66, "no weights match"),
        ({"training": {"reward_model_path": "s3://{bucket}/faces"}}, Reason.OBJECT_NOT_FOUND, 66, "glintr100.onnx"),
        ({"training": {"tokenizer_path": "/nowhere/umt5"}}, Reason.MODEL_NOT_FOUND, 66, "training.tokenizer_path=/nowhere/umt5"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_parameter(
    tmp_path: Path, bucket: Bucket, changes: dict[str, Any], reason: Reason, exit_code: int, named: str
) -> None:
    changes = json.loads(json.dumps(changes).replace("{bucket}", bucket.name))

    error = failure_of(configuration(tmp_path, bucket, **changes))

    assert (error.reason, error.exit_code) == (reason, exit_code)
    assert named.replace("{bucket}", bucket.name) in error.message
    assert error.hint


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_fail_for_good_and_are_not_shown(
    tmp_path: Path, bucket: Bucket, server: SeaweedFS, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "this-is-a-wrong-credential")

    with run_stage(configuration(tmp_path, bucket), tmp_path) as process:
        log = str(process.communicate(timeout=60)[1])

    message = message_left(tmp_path)
    assert process.returncode == message.exit_code == ExitCode.BAD_CONFIGURATION
    assert message.reason is Reason.STORAGE_ACCESS_DENIED
    assert f"dataset=s3://{bucket.name}/faces/" in message.message
    for secret in ("this-is-a-wrong-credential", server.secret_key, server.access_key):
        assert secret not in log + message.message + message.hint


def test_no_credentials_at_all_fail_for_good(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

    error = failure_of(configuration(tmp_path, bucket))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_ACCESS_DENIED, 78)
    assert "NoCredentialsError" in error.message


def test_an_endpoint_that_nobody_listens_on_is_given_up_soon(tmp_path: Path, bucket: Bucket) -> None:
    began = time.monotonic()

    error = failure_of(configuration(tmp_path, bucket, "http://127.0.0.1:9"))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)
    assert "http://127.0.0.1:9" in error.message
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "2852039166", "[::ffff:169.254.169.254]"])
def test_a_link_local_endpoint_is_refused_before_anything_is_sent(tmp_path: Path, bucket: Bucket, host: str) -> None:
    error = failure_of(configuration(tmp_path, bucket, f"http://{host}/"))

    assert (error.reason, error.exit_code) == (Reason.BAD_CONFIGURATION, 78)
    assert "link-local" in error.message


def test_a_server_that_is_busy_for_a_while_is_asked_again(tmp_path: Path, bucket: Bucket) -> None:
    refused: list[str] = []

    def busy_at_first(exchange: Exchange) -> None:
        if exchange.key not in refused:
            refused.append(exchange.key)
            exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(busy_at_first)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        local = stage(config)

    assert len(refused) > 5
    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path, bucket: Bucket) -> None:
    def busy(exchange: Exchange) -> None:
        exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(busy)
        error = failure_of(configuration(tmp_path, bucket, proxy.endpoint))

    assert (error.reason, error.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)


def test_an_answer_that_is_cut_off_is_continued_where_it_broke(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(1).randbytes(SHARD_BYTES))
    cuts = iter([500_000, 0, 100_000])

    def cut(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == LOW:
            exchange.cut_after = next(cuts, None)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(cut)
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        local = stage(config)
        ranges = [exchange.headers["range"] for exchange in proxy.contents() if exchange.key == LOW]

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]
    assert len(ranges) == 5
    assert len(set(ranges)) >= 4, "a range that broke off is not read again from its beginning"


def _replace_on_read(bucket: Bucket, times: int) -> Callable[[Exchange], None]:
    """Replace the object, with other content of the same size, each time a range in its middle is asked for."""
    left = iter(range(times))

    def rule(exchange: Exchange) -> None:
        in_the_middle = not exchange.headers.get("range", "bytes=0-").startswith("bytes=0-")
        if exchange.is_content and exchange.key == LOW and in_the_middle and next(left, None) is not None:
            bucket.put(LOW, random.Random(time.monotonic_ns()).randbytes(SHARD_BYTES))

    return rule


def test_an_object_replaced_while_it_downloads_is_never_a_mixture(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(2).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(_replace_on_read(bucket, 1))
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]


def test_an_object_that_keeps_changing_fails_the_stage(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, random.Random(3).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(_replace_on_read(bucket, 1000))
        config = configuration(tmp_path, bucket, proxy.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
        error = failure_of(config)

    assert (error.reason, error.exit_code) == (Reason.STAGED_FILE_CORRUPT, 74)
    assert f"training.model_paths[0]=s3://{bucket.name}/{LOW}" in error.message
    assert Path(LOW).name not in whole_files(config)


@pytest.mark.parametrize("times", [1, 1000])
def test_content_that_is_damaged_on_its_way_is_noticed_by_its_checksum(tmp_path: Path, bucket: Bucket, times: int) -> None:
    left = iter(range(times))

    def damage(exchange: Exchange) -> None:
        if exchange.is_content and exchange.key == VAE and next(left, None) is not None:
            exchange.body = exchange.body[:-1] + b"\xff"

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(damage)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        if times == 1:
            assert content_at(stage(config)[f"s3://{bucket.name}/{VAE}"]) == bucket.content[VAE]
        else:
            assert failure_of(config).reason is Reason.STAGED_FILE_CORRUPT
            assert Path(VAE).name not in whole_files(config)


def test_the_etag_of_an_encrypted_object_is_not_taken_for_its_checksum(tmp_path: Path, bucket: Bucket) -> None:
    def encrypt(exchange: Exchange) -> None:
        if exchange.key == VAE:
            exchange.answer_headers.append(("x-amz-server-side-encryption", "aws:kms"))
            exchange.body = bytes(byte ^ 1 for byte in exchange.body)

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(encrypt)
        local = stage(configuration(tmp_path, bucket, proxy.endpoint))

    assert content_at(local[f"s3://{bucket.name}/{VAE}"]) == bytes(byte ^ 1 for byte in bucket.content[VAE])


@pytest.mark.parametrize(
    "evil", ["../../etc/cron.d/x", "/absolute", "a/../../../b", "a//b", "a/./b", "nul%00x", "line%0Abreak", "x" * 256]
)
def test_a_key_that_is_no_path_of_a_folder_is_refused(tmp_path: Path, bucket: Bucket, evil: str) -> None:
    bucket.put("faces/videos/placeholder.mp4", b"content")

    def rename(exchange: Exchange) -> None:
        exchange.body = exchange.body.replace(b"videos/placeholder.mp4", evil.encode())

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.after.append(rename)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        error = failure_of(config)

    assert (error.reason, error.exit_code) == (Reason.UNSAFE_PATH, 65)
    assert f"dataset=s3://{bucket.name}/faces/" in error.message
    assert whole_files(config) == set()


def test_keys_that_differ_only_by_case_are_refused(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("faces/Videos/a.mp4", b"1")

    error = failure_of(configuration(tmp_path, bucket))

    assert error.reason is Reason.UNSAFE_PATH
    assert "faces/videos" in error.message
    assert "faces/Videos" in error.message


@pytest.mark.parametrize("where", ["s3", ".rewardfl", "file"])
def test_a_symbolic_link_in_the_cache_is_refused_and_not_followed(tmp_path: Path, bucket: Bucket, where: str) -> None:
    config = configuration(tmp_path, bucket)
    outside, cache = tmp_path / "outside", Path(config.cache_dir)
    outside.mkdir()
    link = cache / where
    if where == "file":
        link = Path(stage(config)[f"s3://{bucket.name}/{VAE}"])
        link.unlink()
        outside = outside / "file"
        outside.write_bytes(b"not to be touched")
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside)

    error = failure_of(config)

    assert error.reason is Reason.UNSAFE_PATH
    assert "symbolic link" in error.message
    assert outside.read_bytes() == b"not to be touched" if where == "file" else not list(outside.iterdir())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put(LOW, bytes(SHARD_BYTES))
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    config = configuration(tmp_path, bucket)
    Path(config.cache_dir).mkdir()

    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, config.cache_dir)
        with run_stage(config, tmp_path, *prefix) as process:
            log = str(process.communicate(timeout=60)[1])
        contents = proxy.contents()

    message = message_left(tmp_path)
    assert (message.reason, process.returncode) == (Reason.DISK_TOO_SMALL, 74), log
    needed, free = (int(word) for word in message.message.split() if word.isdigit())
    assert needed >= SHARD_BYTES > 8 * 2**20 >= free
    assert contents == []


def test_two_stagers_of_one_cache_fetch_each_file_once(tmp_path: Path, bucket: Bucket) -> None:
    with fault_proxy(bucket.endpoint) as proxy:
        config = configuration(tmp_path, bucket, proxy.endpoint)
        processes = [run_stage(config.copy_with(work_dir=str(tmp_path / name)), tmp_path) for name in ("one", "two")]
        logs = [str(process.communicate(timeout=60)[1]) for process in processes]
        keys = [exchange.key for exchange in proxy.contents()]

    assert [process.returncode for process in processes] == [0, 0], logs
    assert len(keys) == len(set(keys)) > 10
    assert (tmp_path / "one/staged.json").read_text() == (tmp_path / "two/staged.json").read_text()


@pytest.fixture
def slow(bucket: Bucket) -> Iterator[FaultProxy]:
    """A server that holds the big shard's ranges back until `before` is emptied."""
    bucket.put(LOW, random.Random(4).randbytes(SHARD_BYTES))
    with fault_proxy(bucket.endpoint) as proxy:

        def hold(exchange: Exchange) -> None:
            while exchange.is_content and exchange.key == LOW and "bytes=0-" not in exchange.headers["range"] and proxy.before:
                time.sleep(0.05)

        proxy.before.append(hold)
        yield proxy
        proxy.before.clear()


def test_sigterm_ends_a_stage_at_once_with_143(tmp_path: Path, bucket: Bucket, slow: FaultProxy) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    with run_stage(config, tmp_path) as process:
        wait_for(lambda: [e for e in slow.contents() if e.key == LOW], "the shard is being fetched")
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)

    assert process.returncode == ExitCode.TERMINATED
    assert message_left(tmp_path).reason is Reason.TERMINATED
    assert time.monotonic() - began < 10, "a read that hangs must not hold up the end"
    assert not (tmp_path / "work/staged.json").exists()


def test_a_stage_that_was_killed_leaves_no_half_file_and_the_next_one_completes(
    tmp_path: Path, bucket: Bucket, slow: FaultProxy
) -> None:
    config = configuration(tmp_path, bucket, slow.endpoint, training={"model_paths": [f"s3://{bucket.name}/{LOW}"]})
    with run_stage(config, tmp_path) as process:
        wait_for(lambda: [e for e in slow.contents() if e.key == LOW], "the shard is being fetched")
        process.kill()
        process.communicate(timeout=20)
    assert Path(LOW).name not in whole_files(config)
    slow.before.clear()

    local = stage(config)

    assert content_at(local[f"s3://{bucket.name}/{LOW}"]) == bucket.content[LOW]
    assert not list((Path(config.cache_dir) / ".rewardfl/parts").iterdir())


def test_empty_objects_and_folder_markers_do_no_harm(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("faces/empty.txt", b"")
    bucket.client.put_object(Bucket=bucket.name, Key="faces/marker/", Body=b"")

    dataset = Path(stage(configuration(tmp_path, bucket))[f"s3://{bucket.name}/faces/"])

    assert (dataset / "empty.txt").read_bytes() == b""
    assert not (dataset / "marker").is_file()


def test_results_are_uploaded_whole_large_ones_in_parts(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)
    results = tmp_path / "results"
    (results / "samples").mkdir(parents=True)
    (results / "lora.safetensors").write_bytes(random.Random(5).randbytes(SHARD_BYTES))
    (results / "samples/ü 1.mp4").write_bytes(b"video")

    uris = Storage.from_config(config).upload_folder(results, config.output)

    assert uris == [f"s3://{bucket.name}/results/lora.safetensors", f"s3://{bucket.name}/results/samples/ü 1.mp4"]
    for name in ("lora.safetensors", "samples/ü 1.mp4"):
        body = bucket.client.get_object(Bucket=bucket.name, Key=f"results/{name}")["Body"].read()
        assert body == (results / name).read_bytes()


def test_an_upload_that_breaks_off_leaves_the_earlier_object_and_no_parts(tmp_path: Path, bucket: Bucket) -> None:
    bucket.put("results/lora.safetensors", b"earlier")
    local = tmp_path / "lora.safetensors"
    local.write_bytes(bytes(SHARD_BYTES))

    def break_second_part(exchange: Exchange) -> None:
        if exchange.method == "PUT" and "partNumber=2" in exchange.path:
            exchange.status, exchange.body = 503, b""

    with fault_proxy(bucket.endpoint) as proxy:
        proxy.before.append(break_second_part)
        config = configuration(tmp_path, bucket, proxy.endpoint)
        with pytest.raises(RewardFLError) as caught:
            Storage.from_config(config).upload_file(local, f"{config.output}lora.safetensors")

    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORAGE_UNAVAILABLE, 69)
    assert bucket.client.get_object(Bucket=bucket.name, Key="results/lora.safetensors")["Body"].read() == b"earlier"
    assert not bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads")
    assert local.stat().st_size == SHARD_BYTES


def test_the_output_is_checked_before_training_and_nothing_stays_there(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket)

    Storage.from_config(config).check_writable(config.output)

    listed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix="results/")
    assert MARKER_NAME not in str(listed.get("Contents", []))


def test_an_output_bucket_that_does_not_exist_is_named_and_not_made(tmp_path: Path, bucket: Bucket) -> None:
    config = configuration(tmp_path, bucket, output="s3://nope-nope/results/")

    with pytest.raises(RewardFLError) as caught:
        Storage.from_config(config).check_writable(config.output)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.BUCKET_NOT_FOUND, 66)
    assert "output=s3://nope-nope/results/" in caught.value.message
    assert "nope-nope" not in str(bucket.client.list_buckets()["Buckets"])


def test_refused_credentials_fail_the_check_of_the_output(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "this-is-a-wrong-credential")
    config = configuration(tmp_path, bucket)

    with pytest.raises(RewardFLError) as caught:
        Storage.from_config(config).check_writable(config.output)

    assert (caught.value.reason, caught.value.exit_code) == (Reason.STORAGE_ACCESS_DENIED, 78)
