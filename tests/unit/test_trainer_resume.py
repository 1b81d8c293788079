"""What a run goes on from, what it refuses, and how checkpoints reach the output folder."""

import json
import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_api.spec import DEFAULT_GRACE_PERIOD_SECONDS, GRACE_PERIOD_VARIABLE
from rewardfl_api.spec import Storage as StorageSpec
from rewardfl_trainer import random_state
from rewardfl_trainer.checkpoint import Saver
from rewardfl_trainer.data import Row
from rewardfl_trainer.failures import Terminated
from rewardfl_trainer.identity import FREE, TUNABLE, Identity, Rows
from rewardfl_trainer.manifest import Manifest, ManifestError
from rewardfl_trainer.order import Position
from rewardfl_trainer.resume import find, restore, restore_metrics
from rewardfl_trainer.stopping import StopRequest, upload_seconds
from rewardfl_trainer.storage import Storage
from rewardfl_trainer.uploads import Uploads
from tests.unit.checkpoints import MAIN, saver, train_a_step
from tests.unit.datasets import parameters

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(autouse=True)
def uploads_end_with_their_test() -> Iterator[None]:
    """Let no upload of a test meet the outage or the log of the next one."""
    yield
    for thread in threading.enumerate():
        if thread.name == "uploads":
            thread.join(30)
            assert not thread.is_alive()


def saved(tmp_path: Path, *steps: int) -> Saver:
    """Return a saver that has saved and uploaded after these steps."""
    made = saver(tmp_path)
    for step in steps:
        train_a_step(made)
        made.save(Position(step=step))
        assert made.uploads.finish()
    return made


def found_step(made: Saver) -> int | None:
    found = find(made.storage, made.folder, made.identity)
    return None if found is None else found.position.step


def checkpoint(made: Saver, step: int, *, local: bool = True) -> Path:
    return (made.folder if local else Path(made.output)) / "checkpoints" / f"step-{step}"


def lose_local(made: Saver) -> None:
    """Leave the empty disk of a new pod."""
    shutil.rmtree(made.folder)


def test_the_newest_whole_checkpoint_is_found_on_the_disk(tmp_path: Path) -> None:
    assert found_step(saved(tmp_path, 5, 10)) == 10


def test_a_new_pod_finds_it_in_the_output_and_has_it_on_its_disk_afterwards(tmp_path: Path) -> None:
    made = saved(tmp_path, 5, 10)
    lose_local(made)
    found = find(made.storage, made.folder, made.identity)
    assert found is not None
    assert (found.position.step, found.folder, found.uploaded) == (10, checkpoint(made, 10), True)
    Manifest.read(found.folder / "manifest.json").verify(found.folder)


def test_without_any_checkpoint_a_run_starts_anew(tmp_path: Path) -> None:
    assert found_step(saver(tmp_path)) is None


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "short file", "other bytes", "missing file"])
@pytest.mark.parametrize("local", [True, False])
def test_a_checkpoint_that_is_not_whole_is_never_resumed_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, local: bool
) -> None:
    made = saved(tmp_path, 5, 10)
    if local:
        shutil.rmtree(checkpoint(made, 10, local=False))
    else:
        lose_local(made)
    folder = checkpoint(made, 10, local=local)
    weights, manifest = folder / "lora.safetensors", folder / "manifest.json"
    if damage == "no manifest":
        manifest.unlink()
    elif damage == "half a manifest":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "short file":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "other bytes":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    else:
        weights.unlink()
    with caplog.at_level(logging.WARNING):
        assert found_step(made) == 5
    assert ("step-10 is passed over" in caplog.text) == (damage != "no manifest")


def test_a_damaged_local_checkpoint_is_fetched_again(tmp_path: Path) -> None:
    made = saved(tmp_path, 5)
    (checkpoint(made, 5) / "lora.safetensors").write_bytes(b"damaged")
    assert found_step(made) == 5
    assert load_file(checkpoint(made, 5) / "lora.safetensors")


def test_a_local_checkpoint_of_another_output_is_left_alone(tmp_path: Path) -> None:
    made = saved(tmp_path, 5)
    other = made.identity.copy_with(output=str(tmp_path / "other"))
    assert find(made.storage, made.folder, other) is None


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "tensorboard/../../outside"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "manifest.json"
    file = {"name": name, "bytes": 0, "sha256": "0" * 64}
    path.write_text(json.dumps({"version": 2, "step": 1, "time": "2026-01-01T00:00:00Z", "files": [file]}))
    with pytest.raises(ManifestError, match="must stay inside"):
        Manifest.read(path)


def test_weights_moments_and_schedule_come_back_with_every_bit(tmp_path: Path) -> None:
    made = saver(tmp_path)
    train_a_step(made)
    first = made.engine.state.named[0][1]
    first.data.view(-1)[0] = -0.0
    made.save(Position(step=1))
    expected = {name: bytes(tensor.view(torch.uint8).flatten().numpy()) for name, tensor in _atleast_1d(made).items()}
    rates = [group["lr"] for group in made.engine.state.optimizer.param_groups]
    again = saver(tmp_path)
    found = find(again.storage, again.folder, again.identity)
    assert found is not None
    restore(found, again.engine, MAIN)
    assert {name: bytes(tensor.view(torch.uint8).flatten().numpy()) for name, tensor in _atleast_1d(again).items()} == expected
    assert [group["lr"] for group in again.engine.state.optimizer.param_groups] == rates
    train_a_step(made)
    train_a_step(again)
    for (name, one), (_, other) in zip(made.engine.state.named, again.engine.state.named, strict=True):
        assert torch.equal(one, other), name


def _atleast_1d(made: Saver) -> dict[str, torch.Tensor]:
    return {name: torch.atleast_1d(tensor) for name, tensor in made.engine.state.tensors()}


def test_a_checkpoint_of_other_parameters_that_are_trained_is_refused_by_name_and_shape(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other = saver(tmp_path, lora_rank=4)
    found = find(other.storage, other.folder, saver(tmp_path).identity)
    assert found is not None
    with pytest.raises(RewardFLError, match=r"master\..* has the shape .* there and .* here") as caught:
        restore(found, other.engine, MAIN)
    assert caught.value.exit_code is ExitCode.BAD_CONFIGURATION


def test_random_generators_go_on_where_they_were() -> None:
    state = json.loads(json.dumps(random_state.captured(torch.device("cpu"))))
    drawn = random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()
    random_state.restore(state, torch.device("cpu"))
    assert (random.random(), random.gauss(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()) == drawn


def test_metrics_written_after_the_checkpoint_are_gone(tmp_path: Path) -> None:
    made = saver(tmp_path)
    made.folder.mkdir()
    metrics, events = made.folder / "metrics.jsonl", made.folder / "tensorboard"
    events.mkdir()
    metrics.write_text('{"step": 1}\n')
    (events / "events.first").write_bytes(b"one")
    made.save(Position(step=1))
    metrics.write_text('{"step": 1}\n{"step": 2}\n')
    (events / "events.second").write_bytes(b"two")
    found = find(made.storage, made.folder, made.identity)
    assert found is not None
    restore_metrics(found, made.folder)
    assert metrics.read_text() == '{"step": 1}\n'
    assert [path.name for path in events.iterdir()] == ["events.first"]


def identity(rows: int = 3, **training: object) -> Identity:
    return Identity(output="/out", training=parameters(**training).to_trainer(), dataset=Rows(rows=rows, sha256=str(rows) * 8))


@pytest.mark.parametrize(
    ("name", "value", "before"),
    [
        ("lora_rank", 8, 32),
        ("seed", 1, 42),
        ("model_paths", ["/other"], ["/models/wan22_paths.json"]),
        ("compat", "roll", "none"),
    ],
)
def test_parameters_that_bind_a_checkpoint_are_named_with_both_values(name: str, value: object, before: object) -> None:
    expected = f"training.{name}={json.dumps(value)}: the checkpoint was made with {json.dumps(before)}"
    with pytest.raises(RewardFLError) as caught:
        identity(**{name: value}).check(identity(), "s3://bucket/step-5")
    assert expected in caught.value.message
    assert (caught.value.reason, caught.value.exit_code) == (Reason.BAD_CONFIGURATION, ExitCode.BAD_CONFIGURATION)
    assert "another output" in caught.value.hint


def test_all_differences_are_listed_in_one_error() -> None:
    with pytest.raises(RewardFLError, match=r"lora_alpha.*lora_rank.*dataset: has 4 rows .* made with 3 rows"):
        identity(4, lora_rank=8, lora_alpha=2.0).check(identity(3), "step-5")


@pytest.mark.parametrize(
    "changes", [{"max_steps": 500}, {"logging_steps": 7, "save_steps": 3, "save_total_limit": 5}, {"dataset_repeat": 9}]
)
def test_harmless_changes_are_allowed(caplog: pytest.LogCaptureFixture, changes: dict[str, object]) -> None:
    identity(**changes).check(identity(), "step-5")
    assert not caplog.text


def test_a_lower_learning_rate_is_allowed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    identity(learning_rate=1e-7).check(identity(), "step-5")
    assert "training.learning_rate=2.5e-06; it goes on with 1e-07" in caplog.text


def test_a_parameter_that_did_not_exist_when_it_was_saved_had_its_default() -> None:
    old = identity()
    del old.training["compat"]
    identity().check(old, "step-5")
    with pytest.raises(RewardFLError, match=r'compat="roll": the checkpoint was made with "none"'):
        identity(compat="roll").check(old, "step-5")


def test_free_and_tunable_parameters_exist() -> None:
    assert parameters().to_trainer().keys() >= FREE | TUNABLE
    assert not FREE & TUNABLE


def test_a_video_or_prompt_that_was_exchanged_makes_another_dataset(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"abc")
    first = Rows.of([Row(0, video, "a face")], tmp_path)
    assert Rows.of([Row(0, video, "a face")], tmp_path) == first
    assert Rows.of([Row(0, video, "two faces")], tmp_path) != first
    video.write_bytes(b"abcd")
    assert Rows.of([Row(0, video, "a face")], tmp_path) != first


class Outage:
    """Storage that refuses or delays uploads while it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusing, self.attempts = True, 0
        self.gate = threading.Event()
        self.gate.set()
        upload = Storage.upload_file

        def upload_file(storage: Storage, local: Path, uri: str) -> str:
            self.attempts += 1
            self.gate.wait(30)
            if self.refusing:
                raise RewardFLError(Reason.STORAGE_UNAVAILABLE, f"output={uri}: gone", exit_code=ExitCode.UNAVAILABLE)
            return upload(storage, local, uri)

        monkeypatch.setattr(Storage, "upload_file", upload_file)


def test_a_failed_upload_is_reported_once_costs_nothing_and_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outage = Outage(monkeypatch)
    made = saver(tmp_path)
    made.save(Position(step=1))
    while outage.attempts < 3:
        time.sleep(0.01)
    made.save(Position(step=2))
    assert not made.uploads.finish()
    assert len([record for record in caplog.records if "could not be uploaded" in record.message]) == 1
    assert found_step(made) == 2
    outage.refusing = False
    assert made.uploads.finish()
    lose_local(made)
    assert found_step(made) == 2


def test_a_slow_upload_does_not_hold_up_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    outage.refusing = False
    outage.gate.clear()
    made = saver(tmp_path)
    for step in (1, 2, 3):
        made.save(Position(step=step))
    assert made.uploads.uploaded is None
    outage.gate.set()
    assert made.uploads.finish()
    assert made.uploads.uploaded.step == 3
    assert sorted(path.name for path in checkpoint(made, 3, local=False).parent.iterdir()) == ["step-1", "step-3"]


def test_the_end_of_a_run_waits_for_its_uploads_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    outage.gate.clear()
    made = saver(tmp_path)
    made.save(Position(step=1))
    assert not made.uploads.finish(timeout_seconds=0.2)
    outage.gate.set()


def test_only_the_newest_checkpoints_are_kept_and_half_written_ones_removed(tmp_path: Path) -> None:
    made = saved(tmp_path, 1, 2)
    for local in (True, False):
        half = checkpoint(made, 2, local=local).with_name("step-3")
        shutil.copytree(checkpoint(made, 2, local=local), half)
        (half / "manifest.json").unlink()
    made.save(Position(step=4))
    assert made.uploads.finish()
    for local in (True, False):
        assert sorted(path.name for path in checkpoint(made, 4, local=local).parent.iterdir()) == ["step-2", "step-4"]


def test_older_checkpoints_stay_until_the_newer_one_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = saved(tmp_path, 1, 2)
    Outage(monkeypatch)
    for step in (3, 4, 5):
        made.save(Position(step=step))
    assert not made.uploads.finish()
    assert sorted(path.name for path in checkpoint(made, 1, local=False).parent.iterdir()) == ["step-1", "step-2"]


def ask_to_stop(*, breaks_off: bool = False) -> None:
    with StopRequest(MAIN) as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()
        assert 0 < stop.seconds_left() < DEFAULT_GRACE_PERIOD_SECONDS
        if breaks_off:
            raise RuntimeError("Connection closed by peer")


def test_sigterm_is_a_request_that_leaves_time_for_the_upload_and_is_not_forgotten() -> None:
    with pytest.raises(Terminated):
        ask_to_stop()


@pytest.mark.parametrize(("grace", "seconds"), [(None, 240), ("3600", 3540), ("30", 24)])
def test_a_checkpoint_has_most_of_the_pods_grace_period_to_be_uploaded(
    monkeypatch: pytest.MonkeyPatch, grace: str | None, seconds: float
) -> None:
    monkeypatch.delenv(GRACE_PERIOD_VARIABLE, raising=False)
    if grace is not None:
        monkeypatch.setenv(GRACE_PERIOD_VARIABLE, grace)
    assert upload_seconds() == seconds


def test_a_collective_that_breaks_off_after_sigterm_is_no_failure() -> None:
    with pytest.raises(Terminated):
        ask_to_stop(breaks_off=True)


def test_uploads_to_a_folder_without_space_do_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    made = saver(tmp_path)
    made.save(Position(step=1))
    assert not made.uploads.finish()
    assert "could not be uploaded; the local copy is whole" in caplog.text
    assert Uploads(Storage(StorageSpec()), "/nowhere", 2).finish()
