"""Parameters that decide what is loaded, generated and trained, on the tiny family: each seen by its effect."""

import json
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
import torch

from rewardfl_trainer.environment import Process
from rewardfl_trainer.metrics import MetricsLog
from rewardfl_trainer.models import load_models
from rewardfl_trainer.progress import Reporter
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.staging import localize
from rewardfl_trainer.staging.stage import stage
from rewardfl_trainer.train import train_batch, train_steps
from tests.distributed.conftest import MakeConfig
from tests.unit.hub_standin import HubStandIn, hub_stand_in

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TOKENIZER_REPOSITORY = "Wan-AI/Wan2.1-T2V-1.3B"
FROM_THE_HUB = ",".join(
    [
        "org/name@v1:high_noise_model/*.safetensors",
        "org/name@v1:low_noise_model/*.safetensors",
        "org/name@v1:models_t5_umt5-xxl-enc-bf16.pth",
        "org/name:Wan2.1_VAE.pth",
    ]
)


@pytest.fixture
def hub(tiny_family: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A hub with the tiny family as `org/name`, and as the repository that the tokenizer comes from."""
    root = tiny_family / "Wan2.2-I2V-A14B"
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with hub_stand_in(files) as running:
        running.also = TOKENIZER_REPOSITORY
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def test_models_by_id_pattern_and_revision_and_the_unnamed_tokenizer_come_from_the_hub(
    make_config: MakeConfig, hub: HubStandIn
) -> None:
    config = make_config(model_paths=None, model_id_with_origin_paths=FROM_THE_HUB, tokenizer_path="")
    stage(config)
    loaded = load_models(localize(config).training, CPU)
    expected = load_models(make_config().training, CPU)
    for name, network in expected.networks().items():
        state = loaded.network(name).state_dict()
        assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items()), name
    assert loaded.tokenizer is not None
    assert expected.tokenizer is not None
    assert torch.equal(loaded.tokenizer("a face"), expected.tokenizer("a face"))
    asked = [path for path, _ in hub.seen]
    assert any(path.startswith("/api/models/org/name/revision/v1") for path in asked)
    assert any(path.startswith(f"/api/models/{TOKENIZER_REPOSITORY}") for path in asked)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"num_frames": 5}, (5, 64, 64)),
        ({"height": 48, "width": 80}, (9, 48, 80)),
        ({"max_pixels": 48 * 48}, (9, 48, 48)),
    ],
)
def test_frames_and_size_are_those_of_the_generated_video(
    make_config: MakeConfig, process: Process, given: dict[str, int], size: tuple[int, int, int]
) -> None:
    run = assemble(make_config(rows=1, num_sample_videos=1, **given), process)
    run.sampler.generate(run.sample_positions, "before")
    with av.open(str(run.folder / "samples" / "before" / "row-0.mp4")) as video:
        frames = list(video.decode(video=0))
    assert (len(frames), frames[0].height, frames[0].width) == size


def weights(run: Run) -> dict[str, torch.Tensor]:
    networks = run.feedback.rollout.models.networks()
    return {f"{name}/{key}": value.clone() for name, network in networks.items() for key, value in network.state_dict().items()}


def test_several_models_are_trained_at_once_and_the_others_are_bit_identical(make_config: MakeConfig, process: Process) -> None:
    training = {"trainable_models": "dit2, vae, text_encoder", "lora_base_model": None, "kl_weight": 0, "max_steps": 1}
    run = assemble(make_config(rows=1, **training), process)
    before = weights(run)
    for batch in run.order.batches():
        _, report = train_batch(run, batch)
        assert report.applied
    after = weights(run)
    moved = {key.split("/")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert moved == {"dit2", "vae", "text_encoder"}
    assert any(key.startswith("dit/") for key in before)


def test_steps_are_logged_and_saved_as_often_as_asked_and_at_the_end(make_config: MakeConfig, process: Process) -> None:
    run = assemble(make_config(max_steps=5, logging_steps=2, save_steps=3, save_total_limit=3), process)
    with MetricsLog(run.folder, process) as log, Reporter(None) as reporter, run.saver.uploads:
        train_steps(run, log, reporter)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5]
    saved = sorted(path.name for path in (Path(run.config.output) / "checkpoints").iterdir())
    assert saved == ["step-3", "step-5"]
    parts = {name for name in lines[0] if name.startswith("seconds_")} - {"seconds_per_step"}
    assert parts == {f"seconds_{name}" for name in ("prepare", "sample", "reference", "decode", "reward", "backward", "optimise")}
    assert sum(lines[0][name] for name in parts) <= 2.1 * lines[0]["seconds_per_step"]
    assert lines[0]["frames_per_second"] == pytest.approx(9 / lines[0]["seconds_per_step"])
