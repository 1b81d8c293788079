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


@pytest.mark.parametrize("stage", [0, 2])
def test_gradients_are_clipped_to_max_grad_norm_and_not_at_all_by_zero(
    make_config: MakeConfig, process: Process, stage: int
) -> None:
    # With an epsilon this large AdamW's first step is the gradient itself.
    given = {"adam_epsilon": 1.0, "learning_rate": 1.0, "max_steps": 1, "reward_weight": 1.0}
    moved, reported = {}, {}
    for limit in (0.0, 1e-3):
        config = make_config(rows=1, name=f"clip-{limit}", deepspeed={"zero_optimization": {"stage": stage}}, **given)
        run = assemble(config.copy_with(training={**config.to_trainer()["training"], "max_grad_norm": limit}), process)
        before = {name: parameter.detach().clone() for name, parameter in run.trainable.parameters()}
        _, report = train_batch(run, next(run.order.batches()))
        steps = [parameter.detach() - before[name] for name, parameter in run.trainable.parameters()]
        moved[limit] = float(torch.nn.utils.get_total_norm(steps))
        reported[limit] = report.gradient_norm
    assert reported[0.0] == pytest.approx(reported[1e-3]), "the norm is that before clipping"
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.01)
    assert moved[0.0] > 0.5 * reported[0.0] > 0.01


def test_the_seed_decides_the_lora_the_noise_and_the_order_of_the_rows(make_config: MakeConfig, process: Process) -> None:
    def drawn(name: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, list[list[list[int]]]]:
        run = assemble(make_config(rows=4, name=name, seed=seed, cache_prefix=False), process)
        loras = [parameter.detach().flatten() for key, parameter in run.trainable.parameters() if "lora_A" in key]
        return torch.cat(loras), run.preparer.start(0, 0).latents_BCthw, [run.order.sampler.batches(i) for i in range(3)]

    (lora, noise, order), (same_lora, same_noise, same_order), (other_lora, other_noise, other_order) = (
        drawn(name, seed) for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert torch.equal(lora, same_lora)
    assert torch.equal(noise, same_noise)
    assert order == same_order
    for first, other in ((lora, other_lora), (noise.flatten(), other_noise.flatten())):
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.1
    assert order != other_order


def test_every_row_and_every_visit_gets_noise_of_its_own_in_turn(make_config: MakeConfig, process: Process) -> None:
    config = make_config(rows=2, name="noises", noise_seeds_per_sample=2, max_steps=6, cache_prefix=False)
    run = assemble(config, process)
    noises = [run.preparer.start(position, draw).latents_BCthw for position in (0, 1) for draw in (0, 1)]
    assert all(not torch.equal(first, second) for number, first in enumerate(noises) for second in noises[:number])
    losses = [run.feedback.loss(run.preparer(0), visit=visit)[1].loss for visit in range(3)]
    assert losses[0] == losses[2] != losses[1]


def test_a_sampled_kl_is_that_of_one_step_and_their_mean_is_the_kl_of_all(make_config: MakeConfig, process: Process) -> None:
    def kls(kl_steps: str, visits: int) -> list[float]:
        run = assemble(make_config(rows=1, name=kl_steps, kl_steps=kl_steps, max_steps=visits), process)
        for name, parameter in run.trainable.parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            return [run.feedback.loss(run.preparer(0), visit)[1].kl for visit in range(visits)]

    (whole,), sampled = kls("all", 1), set(kls("sampled", 16))
    assert len(sampled) == 4, "one of the window's four steps a visit"
    assert whole == pytest.approx(sum(sampled) / 4, rel=1e-5)
    assert min(sampled) > 0


@pytest.mark.parametrize("cached", [True, False])
def test_end_image_conditions_a_run_on_the_last_frame_as_well(make_config: MakeConfig, process: Process, cached: bool) -> None:
    masks, videos = {}, {}
    for inputs in ("input_image", "input_image, end_image"):
        config = make_config(rows=1, name=inputs[-9:], extra_inputs=inputs, cache_conditions=cached, num_sample_videos=1)
        run = assemble(config, process)
        image_BCthw = run.preparer.condition(0).image_BCthw
        assert image_BCthw is not None
        masks[inputs] = image_BCthw[0, :4, :, 0, 0].T.tolist()
        videos[inputs] = run.sampler.video(0)
    first, both = masks.values()
    assert first == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert both == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert not torch.equal(*videos.values())


def test_every_sample_of_a_larger_batch_is_trained_on(make_config: MakeConfig, process: Process) -> None:
    def trained(name: str, **training: object) -> tuple[list[float], dict[str, torch.Tensor]]:
        run = assemble(make_config(rows=2, name=name, max_steps=1, **training), process)
        outcomes, report = train_batch(run, next(run.order.batches()))
        assert report.applied
        return [outcome.loss for outcome in outcomes], {key: p.detach().clone() for key, p in run.trainable.parameters()}

    losses, batched = trained("batched", per_device_train_batch_size=2)
    summed, accumulated = trained("accumulated", gradient_accumulation_steps=2)
    (single,), alone = trained("alone")
    assert len(losses) == len(set(losses)) == 2
    assert single in losses
    assert sorted(losses) == sorted(summed)
    for key, value in batched.items():
        torch.testing.assert_close(accumulated[key], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(alone[key], value, rtol=1e-2) for key, value in batched.items())


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
    assert all(0.1 < line["peak_memory_gb"] < 64 for line in lines), "this process's, libraries included"
    events = b"".join(path.read_bytes() for path in (run.folder / "tensorboard").iterdir())
    assert b"train/peak_memory_gb" in events
