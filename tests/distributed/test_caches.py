"""What is computed before training equals what would be computed while training, and its networks are gone by then."""

import gc
import json
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from diffsynth.models.wan_video_dit import WanModel
from diffsynth.models.wan_video_text_encoder import WanTextEncoder
from diffsynth.models.wan_video_vae import Encoder3d
from safetensors.torch import load
from torch import Tensor, nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.environment import Process
from rewardfl_trainer.models import Models
from rewardfl_trainer.precompute import fill
from rewardfl_trainer.precompute.store import Store
from rewardfl_trainer.run import Run, assemble
from rewardfl_trainer.train import train_batch
from tests.distributed.caching_run import start
from tests.distributed.conftest import MakeConfig

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_server")]

OFF = {"cache_conditions": False, "cache_references": False, "cache_prefix": False}
TIMEOUT_SECONDS = 300


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """Forward passes by the class of the network, whichever instance makes them."""
    counts: Counter[str] = Counter()
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, _: counts.update([type(module).__name__]))
    yield counts
    handle.remove()


def alive(kind: type[nn.Module]) -> set[int]:
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if type(thing) is kind}


def gradients(run: Run) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients of row 0 with a LoRA that is not at its start."""
    generator = torch.Generator().manual_seed(5)
    for _, parameter in run.trainable.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    loss, _ = run.feedback.loss(run.preparer(0), visit=0)
    loss.backward()
    return float(loss.detach()), {name: parameter.grad for name, parameter in run.trainable.parameters()}  # type: ignore[misc]


def entries(folder: Path, kind: str = "*") -> list[Path]:
    """Return the entries in the cache of the configurations that `make_config` makes in `folder`."""
    return sorted((folder / "cache" / ".rewardfl" / "computed").glob(f"{kind}/*/*.safetensors"))


@pytest.mark.parametrize(
    "training",
    [{}, {"dtype": "bf16"}, {"mid_timestep": 1}, {"lora_base_model": None, "trainable_models": "vae"}],
    ids=["prefix of three", "bf16", "prefix of one", "the vae is trained"],
)
def test_loss_and_gradient_are_bit_equal_with_and_without_what_is_kept(
    make_config: MakeConfig, process: Process, tmp_path: Path, training: dict[str, object]
) -> None:
    loss_off, gradients_off = gradients(assemble(make_config(name="off", **OFF, **training), process))
    loss_cold, gradients_cold = gradients(assemble(make_config(name="cold", **training), process))
    loss_warm, gradients_warm = gradients(assemble(make_config(name="warm", **training), process))
    assert loss_off == loss_cold == loss_warm
    assert entries(tmp_path, "reference"), "something is kept in every case"
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients_off.values())
    for name, gradient in gradients_off.items():
        assert torch.equal(gradients_cold[name], gradient), name
        assert torch.equal(gradients_warm[name], gradient), name


def test_sample_videos_are_bit_equal_with_and_without_what_is_kept(make_config: MakeConfig, process: Process) -> None:
    videos = [
        assemble(make_config(name=name, num_sample_videos=2, **training), process).sampler.video(1)
        for name, training in (("off", OFF), ("on", {}))
    ]
    assert torch.equal(*videos)


def test_a_second_run_computes_nothing_of_it_again_and_loads_no_network_for_it(
    make_config: MakeConfig, process: Process, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(num_sample_videos=1)
    assemble(config, process)
    assert calls["WanTextEncoder"] == 2
    assert calls["Encoder3d"] > 0
    calls.clear()
    loaded: list[str] = []
    monkeypatch.setattr("rewardfl_trainer.precompute.fill.load_models", lambda *_: loaded.append("loaded"))
    run = assemble(config, process)
    run.sampler.generate(run.sample_positions, "before")
    train_batch(run, next(run.order.batches()))
    assert loaded == []
    assert calls["WanTextEncoder"] == calls["Encoder3d"] == 0


def test_the_first_phases_networks_are_gone_while_training_and_never_all_there_at_once(
    make_config: MakeConfig, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (WanTextEncoder, Encoder3d, WanModel)
    before = {kind: alive(kind) for kind in kinds}
    at_each_load: list[dict[str, int]] = []
    real = fill.load_models

    def loaded(*arguments: Any, **keywords: Any) -> Models:
        models = real(*arguments, **keywords)
        at_each_load.append({kind.__name__: len(alive(kind) - before[kind]) for kind in kinds})
        return models

    monkeypatch.setattr(fill, "load_models", loaded)
    run = assemble(make_config(), process)
    assert at_each_load == [
        {"WanTextEncoder": 1, "Encoder3d": 1, "WanModel": 0},
        {"WanTextEncoder": 0, "Encoder3d": 0, "WanModel": 1},
    ]
    assert {kind.__name__: len(alive(kind) - before[kind]) for kind in kinds} == {
        "WanTextEncoder": 0,
        "Encoder3d": 0,
        "WanModel": 1,
    }
    models = run.feedback.rollout.models
    assert set(models.networks()) == {"dit2", "vae"}
    trained = {name for name, _ in models.network("dit2").named_parameters() if "lora" in name}
    assert len(trained) == len(run.trainable.parameters())
    decoder_only = [name for name, _ in models.vae.named_parameters() if not name.startswith(("model.decoder", "model.conv2"))]
    assert decoder_only == []


def test_every_start_that_is_asked_for_is_computed_before_training(
    make_config: MakeConfig, process: Process, tmp_path: Path
) -> None:
    told: list[str] = []
    config = make_config(noise_seeds_per_sample=3, dataset_repeat=2, num_sample_videos=1)
    run = assemble(config, process, told.append)
    assert {kind: len(entries(tmp_path, kind)) for kind in ("condition", "reference", "prefix")} == {
        "condition": 2,
        "reference": 2,
        "prefix": 2 * 2 + 1,  # two rows, in two passes, of three noises one each; and a sample video
    }
    assert told[-1] == "Computing what training starts from: 5 of 5."
    written = [path.stat().st_mtime_ns for path in entries(tmp_path)]
    run.sampler.generate(run.sample_positions, "before")
    for batch in run.order.batches():
        train_batch(run, batch)
    assert [path.stat().st_mtime_ns for path in entries(tmp_path)] == written


def test_damaged_entries_are_made_again_at_the_next_start(make_config: MakeConfig, process: Process, tmp_path: Path) -> None:
    config = make_config(rows=1)
    assemble(config, process)
    paths = entries(tmp_path)
    assert len(paths) == 3
    whole = [load(path.read_bytes()) for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9])
    assemble(config, process)
    for path, expected in zip(paths, whole, strict=True):
        found = load(path.read_bytes())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_entry_that_is_lost_while_training_ends_the_run_so_that_it_is_started_again(
    make_config: MakeConfig, process: Process, tmp_path: Path
) -> None:
    run = assemble(make_config(rows=1), process)
    (path,) = entries(tmp_path, "prefix")
    path.unlink()
    with pytest.raises(RewardFLError, match="gone or damaged") as caught:
        train_batch(run, next(run.order.batches()))
    assert (caught.value.reason, caught.value.exit_code) == (Reason.IO_FAILED, ExitCode.IO_ERROR)


def test_a_disk_that_is_too_small_is_refused_before_any_network_is_loaded(
    make_config: MakeConfig, process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "free_bytes", lambda _self: 1000)
    monkeypatch.setattr(fill, "load_models", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RewardFLError, match="and 1000 are free") as caught:
        assemble(make_config(), process)
    assert caught.value.reason == Reason.DISK_TOO_SMALL
    assert entries(tmp_path) == []


def made_by(rank: BaseProcess, made: Path) -> list[str]:
    """Return the names of the entries that a rank made."""
    rank.join(TIMEOUT_SECONDS)
    assert rank.exitcode == 0
    names: list[str] = json.loads(made.read_text())
    return names


def test_two_jobs_at_once_share_the_work_and_a_killed_one_leaves_what_is_done(make_config: MakeConfig, tmp_path: Path) -> None:
    configs = [make_config(name=name, num_sample_videos=2) for name in ("killed", "one", "two")]
    killed = start(configs[0], tmp_path / "killed.json", dies_at_write=4)
    killed.join(TIMEOUT_SECONDS)
    assert killed.exitcode == -signal.SIGKILL
    done = {path.name for path in entries(tmp_path)}
    assert len(done) == 3, "the fourth was not whole yet"
    results = [tmp_path / "one.json", tmp_path / "two.json"]
    jobs = [start(config, result) for config, result in zip(configs[1:], results, strict=True)]
    one, two = map(made_by, jobs, results)
    assert len(entries(tmp_path)) == 2 + 2 + 4
    assert sorted([*done, *one, *two]) == sorted(path.name for path in entries(tmp_path))


def test_pods_with_volumes_of_their_own_each_compute_what_their_ranks_ask_for(make_config: MakeConfig, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    results = [tmp_path / "pod-0.json", tmp_path / "pod-1.json"]
    pods = []
    for rank, result in zip(("0", "1"), results, strict=True):
        config = make_config(name=f"pod-{rank}", max_steps=1).copy_with(cache_dir=str(tmp_path / rank / "cache"))
        pods.append(start(config, result, **both, RANK=rank, GROUP_RANK=rank))
    made = list(map(made_by, pods, results))
    assert [sorted(names) for names in made] == [sorted(path.name for path in entries(tmp_path / rank)) for rank in ("0", "1")]
    assert [len(names) for names in made] == [3, 3], "condition, reference and prefix of one row each"
    assert set(made[0]).isdisjoint(made[1])
