"""What is kept, what each phase has in memory, and that any other input has another name."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewardfl_api.training import TrainingParameters
from rewardfl_trainer.data import Row
from rewardfl_trainer.models import FoundModels
from rewardfl_trainer.precompute import keys as keys_module
from rewardfl_trainer.precompute.digests import Digests
from rewardfl_trainer.precompute.keys import Keys
from rewardfl_trainer.precompute.phases import Phases
from rewardfl_trainer.sampling import Plan
from tests.unit.datasets import parameters

LORA = {"trainable_models": "dit2", "lora_base_model": "dit2", "min_timestep_boundary": 0.9}


def phases(**changes: object) -> Phases:
    given = parameters(**{**LORA, **changes})
    return Phases.of(given, Plan.of(given))


def test_the_prefix_of_wan22_is_the_three_high_noise_steps() -> None:
    found = phases()
    assert (found.prefix_steps, found.prefix_networks) == (3, {"dit"})
    assert found.training_networks == {"dit2", "vae"}
    assert not found.encodes_in_training


@pytest.mark.parametrize(
    ("changes", "steps", "in_training"),
    [
        ({"mid_timestep": 1}, 1, {"dit", "dit2", "vae"}),
        ({"mid_timestep": 0}, 0, {"dit", "dit2", "vae"}),
        ({"num_inference_steps": 4, "mid_timestep": 2, "final_timestep": 3}, 2, {"dit2", "vae"}),
        ({"trainable_models": "dit", "lora_base_model": "dit", "mid_timestep": 0}, 0, {"dit", "dit2", "vae"}),
        ({"trainable_models": "dit", "lora_base_model": "dit", "min_timestep_boundary": 1.0}, 0, {"dit", "vae"}),
        ({"trainable_models": "dit,dit2", "lora_base_model": None, "mid_timestep": 2}, 0, {"dit", "dit2", "vae"}),
        ({"cache_prefix": False}, 0, {"dit", "dit2", "vae"}),
        ({"min_timestep_boundary": 0.5, "max_timestep_boundary": 0.8}, 0, {"dit", "dit2", "vae"}),
    ],
    ids=["early window", "no steps before", "four steps", "high noise", "single", "both", "off", "low noise first"],
)
def test_what_nothing_trained_takes_part_in_is_the_prefix(changes: dict[str, object], steps: int, in_training: set[str]) -> None:
    found = phases(**changes)
    assert (found.prefix_steps, found.training_networks) == (steps, in_training)
    assert found.keeps_conditions


@pytest.mark.parametrize("trained", ["vae", "text_encoder"])
def test_what_depends_on_a_trained_network_is_not_kept(trained: str) -> None:
    found = phases(trainable_models=trained, lora_base_model=None)
    assert not found.keeps_conditions
    assert found.prefix_steps == 0
    assert found.keeps_references
    assert found.training_networks == {"dit", "dit2", "text_encoder", "vae"}


def test_conditions_that_are_not_kept_need_their_networks_while_training() -> None:
    found = phases(cache_conditions=False)
    assert found.training_networks == {"dit2", "text_encoder", "vae"}
    assert found.encodes_in_training
    assert found.prefix_steps == 3


def test_everything_can_be_switched_off() -> None:
    assert not phases(cache_conditions=False, cache_references=False, cache_prefix=False).keeps_anything


@dataclasses.dataclass
class Setting:
    """Everything that goes into the keys of one row, in files of a few bytes."""

    folder: Path
    changes: dict[str, Any] = dataclasses.field(default_factory=lambda: dict(LORA))
    prompt: str = "a face"
    size: tuple[int, int] = (32, 48)
    noise: float = 1.0
    device: str = "cpu"
    counter: int = 0

    def __post_init__(self) -> None:
        for name in (
            "dit-1",
            "dit-2",
            "text",
            "vae",
            "video",
            "tokenizer/spiece.model",
            "face/scrfd_10g_bnkps.onnx",
            "face/glintr100.onnx",
        ):
            self.write(name, f"content of {name}")

    def write(self, name: str, content: str) -> None:
        """Write a file with a time of its own, long past."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        self.counter += 1
        os.utime(path, (self.counter, self.counter))

    def names(self) -> dict[str, str]:
        """Return the name of the row's condition, reference and prefix."""
        places = {"tokenizer_path": str(self.folder / "tokenizer"), "reward_model_path": str(self.folder / "face")}
        given: TrainingParameters = parameters(**places, **self.changes)
        plan = Plan.of(given)
        files = {"dit": ["dit-1", "dit-2"], "text_encoder": ["text"], "vae": ["vae"]}
        found = FoundModels({name: ([self.folder / part for part in parts], None) for name, parts in files.items()})  # type: ignore[misc]
        keys = Keys(given, plan, Phases.of(given, plan), found, Digests(self.folder / "digests"), self.device)
        row = Row(0, self.folder / "video", self.prompt)
        made = (
            keys.condition(row, self.size),
            keys.reference(row, self.size),
            keys.prefix(row, self.size, torch.full((1, 16, 3, 4, 6), self.noise)),
        )
        assert len({key.digest for key in made}) == 3
        return {key.kind: key.digest for key in made}


def change(**fields: object) -> Callable[[Setting], None]:
    def apply(setting: Setting) -> None:
        for name, value in fields.items():
            setattr(setting, name, value)

    return apply


def parameter(**fields: object) -> Callable[[Setting], None]:
    return lambda setting: setting.changes.update(fields)


def content(name: str) -> Callable[[Setting], None]:
    return lambda setting: setting.write(name, "something else")


def swapped_shards(setting: Setting) -> None:
    setting.write("dit-1", "content of dit-2")
    setting.write("dit-2", "content of dit-1")


ALL, CONDITION, REFERENCE, PREFIX = {"condition", "reference", "prefix"}, {"condition", "prefix"}, {"reference"}, {"prefix"}


CHANGES: dict[str, tuple[Callable[[Setting], None], set[str]]] = {
    "prompt": (change(prompt="another face"), CONDITION),
    "size": (change(size=(48, 32)), ALL),
    "device": (change(device="cuda"), ALL),
    "noise": (change(noise=0.5), PREFIX),
    "video": (content("video"), ALL),
    "text encoder": (content("text"), CONDITION),
    "vae": (content("vae"), CONDITION),
    "sidecar": (content("text.config.json"), CONDITION),
    "tokenizer": (content("tokenizer/spiece.model"), CONDITION),
    "new tokenizer file": (content("tokenizer/tokenizer.json"), CONDITION),
    "second shard": (content("dit-2"), PREFIX),
    "new sidecar": (content("dit-1.config.json"), PREFIX),
    "shards swapped": (swapped_shards, PREFIX),
    "recogniser": (content("face/glintr100.onnx"), REFERENCE),
    "detector": (content("face/scrfd_10g_bnkps.onnx"), REFERENCE),
    "rewards": (parameter(rewards=[{"name": "face_identity"}, {"name": "temporal_consistency"}]), REFERENCE),
    "external data": (content("face/weights.bin"), REFERENCE),
    "num_frames": (parameter(num_frames=9), ALL),
    "dtype": (parameter(dtype="fp32"), ALL),
    "compat": (parameter(compat="roll"), ALL),
    "extra_inputs": (parameter(extra_inputs="input_image,end_image"), CONDITION),
    "channel order": (parameter(face_channel_order="bgr"), REFERENCE),
    "schedule": (parameter(sigma_shift=3.0, min_timestep_boundary=0.85), PREFIX),
    "number of steps": (parameter(num_inference_steps=10), PREFIX),
    "window": (parameter(mid_timestep=2), PREFIX),
}


@pytest.mark.parametrize(("apply", "changed"), CHANGES.values(), ids=CHANGES)
def test_another_input_is_another_entry(tmp_path: Path, apply: Callable[[Setting], None], changed: set[str]) -> None:
    setting = Setting(tmp_path)
    before = setting.names()
    assert setting.names() == before
    apply(setting)
    after = setting.names()
    assert {kind for kind in before if after[kind] != before[kind]} == changed


@pytest.mark.parametrize(
    "unrelated",
    [
        {"learning_rate": 0.5},
        {"reward_weight": 3.0},
        {"rewards": [{"name": "face_identity", "weight": 2.0}]},
        {"kl_weight": 0.0},
        {"lora_rank": 8},
        {"save_steps": 7},
        {"noise_seeds_per_sample": 4},
        {"missing_face_penalty": -0.5},
        {"final_timestep": 5},
    ],
    ids=str,
)
def test_what_does_not_matter_changes_no_name(tmp_path: Path, unrelated: dict[str, object]) -> None:
    setting = Setting(tmp_path)
    before = setting.names()
    setting.changes.update(unrelated)
    assert setting.names() == before


def test_the_same_content_elsewhere_has_the_same_name(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        names.append(Setting(folder).names())
    assert names[0] == names[1]


@pytest.mark.parametrize("library", keys_module.LIBRARIES)
def test_another_version_of_a_library_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    setting = Setting(tmp_path)
    before, real = setting.names(), keys_module.version
    monkeypatch.setattr(keys_module, "version", lambda name: "0" if name == library else real(name))
    assert set(setting.names().values()).isdisjoint(before.values())


def test_another_text_of_our_own_modules_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(tmp_path)
    before = setting.names()
    monkeypatch.setattr(keys_module, "MODULES", keys_module.MODULES[1:])
    keys_module.code_digest.cache_clear()
    try:
        assert set(setting.names().values()).isdisjoint(before.values())
    finally:
        keys_module.code_digest.cache_clear()


def test_every_module_that_results_depend_on_is_there() -> None:
    folder = Path(keys_module.__file__).parents[1]
    missing = [pattern for pattern in keys_module.MODULES if not list(folder.glob(pattern))]
    assert missing == []
