"""Several rewards: found by name or import path, made with their options, added up with weights, kept and restored."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.objective import Objective
from rewardfl_trainer.rewards import registry
from rewardfl_trainer.rewards.base import Reference, Reward, RewardContext, RewardResult
from rewardfl_trainer.rewards.composition import Part, Rewards
from rewardfl_trainer.rewards.face import FaceReward
from tests.unit.datasets import parameters
from tests.unit.face_networks import frame_with_marks, write_detector, write_recogniser
from tests.unit.own_rewards import importable

CPU = torch.device("cpu")
HERE = "tests.unit.test_rewards_composition"


@dataclass(frozen=True)
class Brightness(Reference):
    mean_B: Tensor


class BrightnessLikeness(Reward[Brightness, RewardResult]):
    """A reward as a user would write it."""

    reference_type = Brightness

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(float(factor)))
        if factor < 0:
            raise ValueError(f"factor={factor}: must not be negative")

    def reference(self, video_B3THW: Tensor) -> Brightness:
        return Brightness(video_B3THW.mean(dim=(1, 2, 3, 4)))

    def forward(self, video_B3THW: Tensor, reference: Brightness) -> RewardResult:
        frames_BT = -self.factor * (video_B3THW.mean(dim=(1, 3, 4)) - reference.mean_B[:, None]).abs()
        return RewardResult(frames_BT.mean(dim=1), frames_BT.detach())


class Unfinished(Reward[Brightness, RewardResult]):
    def reference(self, video_B3THW: Tensor) -> Brightness:
        return Brightness(video_B3THW.mean(dim=(1, 2, 3, 4)))


class NotAReward:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("antelopev2")
    write_detector(path)
    write_recogniser(path)
    return path


def video(seed: int, faces: int = 5) -> Tensor:
    marks = [(30, 36 + number) if number < faces else None for number in range(5)]
    frames = [frame_with_marks(64, 80, red=mark, seed=10 * seed + number) for number, mark in enumerate(marks)]
    return torch.stack(frames, dim=1)[None]


TRUTH, GENERATED = video(1), video(2)


def load(folder: Path, *rewards: dict[str, Any], **changes: Any) -> Rewards:
    return Rewards.load(parameters(reward_model_path=str(folder), rewards=list(rewards) or None, **changes), CPU)


def scored(rewards: Rewards, generated: Tensor = GENERATED) -> Any:
    return rewards(generated, rewards.reference(TRUTH))


def test_unset_is_face_identity_alone_and_gives_the_loss_of_the_document_bit_for_bit(folder: Path) -> None:
    given = parameters(reward_model_path=str(folder), missing_face_penalty=-0.1)
    face = FaceReward.load(folder, missing_face_penalty=-0.1)
    result = face(video(2, faces=4), face.reference(TRUTH))
    scores = scored(Rewards.load(given, CPU), video(2, faces=4))
    kl = torch.tensor(0.03)
    score = result.score_B.mean()
    expected = -(score - given.reward_baseline) / given.reward_scale * given.reward_weight + given.kl_weight * kl
    assert torch.equal(Objective.of(given).combined(scores.value, kl), expected)
    assert torch.equal(Objective.of(given).loss(score, kl), expected)
    assert scores.reward == float(score)
    assert scores.no_face_fraction == result.no_face_fraction == pytest.approx(0.2)
    assert scores.details() == {}


def test_terms_are_added_up_each_with_its_baseline_scale_and_weight(folder: Path) -> None:
    rewards = load(
        folder,
        {"name": "face_identity", "weight": 0.7},
        {"name": "temporal_consistency", "weight": 0.2, "baseline": 0.9, "scale": 0.5},
    )
    scores = scored(rewards)
    face, temporal = (float(scores.results[name].score_B) for name in ("face_identity", "temporal_consistency"))
    assert float(scores.value) == pytest.approx(0.7 * (face - 0.54) / 0.16 + 0.2 * (temporal - 0.9) / 0.5)
    assert scores.reward == pytest.approx((0.7 * face + 0.2 * temporal) / 0.9)
    details = scores.details()
    assert details["reward_face_identity"] == pytest.approx(face)
    assert details["reward_temporal_consistency"] == pytest.approx(temporal)
    assert {"temporal_consistency_motion_ratio", "temporal_consistency_flicker_ratio"} < details.keys()


def gradient(rewards: Rewards) -> Tensor:
    generated = GENERATED.clone().requires_grad_()
    (found,) = torch.autograd.grad(scored(rewards, generated).value, generated)
    return found


def test_the_gradient_is_the_weighted_sum_of_the_parts(folder: Path) -> None:
    both = load(folder, {"name": "face_identity", "weight": 0.5}, {"name": "temporal_consistency", "weight": 2})
    face = load(folder, {"name": "face_identity"})
    temporal = load(folder, {"name": "temporal_consistency"})
    assert float(gradient(face).abs().max()) > 0
    torch.testing.assert_close(gradient(both), 0.5 * gradient(face) + 2 * gradient(temporal))


def test_a_reward_of_weight_zero_is_logged_and_not_learned_from(folder: Path) -> None:
    watched = load(folder, {"name": "face_identity"}, {"name": "temporal_consistency", "weight": 0})
    assert torch.equal(gradient(watched), gradient(load(folder)))
    scores = scored(watched)
    assert 0 < scores.details()["reward_temporal_consistency"] <= 1
    assert scores.reward == pytest.approx(scores.details()["reward_face_identity"])


def test_a_reward_is_found_by_its_import_path_and_made_with_its_options(folder: Path) -> None:
    rewards = load(folder, {"name": f"{HERE}:BrightnessLikeness", "options": {"factor": 3}})
    part = rewards.parts["brightness_likeness"]
    assert float(part.reward.factor) == 3
    assert not any(parameter.requires_grad for parameter in part.reward.parameters())
    assert not part.reward.training
    assert float(gradient(rewards).abs().max()) > 0


def test_without_a_face_reward_nobody_looks_for_faces(folder: Path) -> None:
    rewards = load(folder, {"name": "temporal_consistency"})
    assert rewards.face_finder is None
    assert math.isnan(scored(rewards).no_face_fraction)
    assert load(folder).face_finder is not None


@pytest.mark.parametrize(
    ("reward", "problem"),
    [
        ({"name": "no_such_package.module:Class"}, "cannot be imported: No module named 'no_such_package'"),
        ({"name": f"{HERE}:NoSuchClass"}, "cannot be imported"),
        ({"name": f"{HERE}:NotAReward"}, "is no rewardfl_trainer.rewards.base.Reward"),
        ({"name": f"{HERE}:Unfinished"}, "does not define forward and reference_type"),
        ({"name": f"{HERE}:BrightnessLikeness", "options": {"colour": "red"}}, "unexpected keyword argument 'colour'"),
        ({"name": f"{HERE}:BrightnessLikeness", "options": {"factor": -1}}, "factor=-1: must not be negative"),
        ({"name": "temporal_consistency", "options": {"cell_pixels": 5}}, "use 1, 2, 4, 8 or 16"),
        ({"name": "face_identity", "options": {"penalty": 1}}, "takes none; set training.face_channel_order"),
    ],
)
def test_a_reward_that_cannot_be_made_is_named_with_what_to_change(folder: Path, reward: dict[str, Any], problem: str) -> None:
    with pytest.raises(RewardFLError) as caught:
        load(folder, reward)
    assert caught.value.reason == Reason.BAD_CONFIGURATION
    assert caught.value.exit_code == ExitCode.BAD_CONFIGURATION
    assert caught.value.message.startswith(f"training.rewards: {reward['name']}: ")
    assert problem in caught.value.message
    assert caught.value.hint


def test_a_mistake_inside_a_reward_is_not_taken_for_a_wrong_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, video_B3THW: Tensor, reference: Any) -> RewardResult:
        raise TypeError("a mistake")

    rewards = load(folder, {"name": f"{HERE}:BrightnessLikeness"})
    kind = registry.find_class(f"{HERE}:BrightnessLikeness")
    monkeypatch.setattr(kind, "forward", broken)
    with pytest.raises(TypeError, match="a mistake"):
        scored(rewards)


def test_only_what_python_finds_by_itself_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lying_about.py").write_text("raise SystemExit('was run')")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    if "" in before or str(tmp_path) in before:
        monkeypatch.setattr(sys, "path", [entry for entry in before if entry not in ("", str(tmp_path))])
    with pytest.raises(RewardFLError, match="cannot be imported"):
        registry.find_class("lying_about:Class")


def test_references_survive_being_kept_as_tensors(folder: Path) -> None:
    rewards = load(folder, {"name": "face_identity"}, {"name": "temporal_consistency"})
    references = rewards.reference(TRUTH)
    tensors = references.tensors()
    assert set(tensors) == {"face_identity/embeddings_BSE", "face_identity/found_BS", "temporal_consistency/energy_BK"}
    again = rewards.unpacked({name: tensor.clone() for name, tensor in tensors.items()}).to("cpu")
    assert float(rewards(GENERATED, again).value) == float(rewards(GENERATED, references).value)


def test_what_a_reference_depends_on_changes_with_the_options(folder: Path) -> None:
    fine, coarse = (
        load(folder, {"name": "temporal_consistency", "options": {"cell_pixels": cell}}).identities() for cell in (4, 8)
    )
    assert fine.keys() == coarse.keys() == {"temporal_consistency"}
    assert fine != coarse


def test_a_reward_may_look_at_the_training_parameters_while_it_is_made(folder: Path) -> None:
    context = RewardContext(parameters(reward_model_path=str(folder), missing_face_penalty=-0.5), CPU)
    assert FaceReward.create(context, {}).missing_face_penalty == -0.5


def test_hiding_the_face_does_not_pay_whatever_it_is_combined_with(folder: Path) -> None:
    rewards = load(folder, {"name": "face_identity"}, {"name": "temporal_consistency", "weight": 0.2}, missing_face_penalty=-1)
    scores = [scored(rewards, torch.cat([TRUTH[:, :, :shown], video(3, faces=0)[:, :, shown:]], dim=2)) for shown in (5, 3, 0)]
    assert scores[0].reward > scores[1].reward > scores[2].reward
    assert [score.no_face_fraction for score in scores] == pytest.approx([0, 0.4, 1])


@pytest.fixture
def example() -> Iterator[Path]:
    """The reward of examples/custom_reward, importable as it is in an image that has it."""
    folder = Path(__file__).parents[2] / "examples" / "custom_reward"
    with importable(folder):
        yield folder / "my_rewards" / "exposure.py"


def test_the_example_of_a_reward_scores_brightness(folder: Path, example: Path) -> None:
    del example
    rewards = load(folder, {"name": "my_rewards.exposure:Exposure", "options": {"limit": 0.95}})

    same, darker = scored(rewards, TRUTH), scored(rewards, TRUTH - 0.4)

    assert same.reward == pytest.approx(1, abs=0.05)
    assert darker.reward == pytest.approx(1 - 0.4 / 0.95, abs=0.05)
    assert darker.details() == {"exposure_brighter_by": pytest.approx(-0.4, abs=0.05)}
    assert float(gradient(rewards).abs().max()) > 0
    assert rewards.unpacked(rewards.reference(TRUTH).tensors()).parts.keys() == {"exposure"}
    with pytest.raises(RewardFLError, match="limit=0: must be above 0"):
        load(folder, {"name": "my_rewards.exposure:Exposure", "options": {"limit": 0}})


def test_the_documentation_walks_through_the_code_of_the_example(example: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    shown = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL))
    code = example.read_text(encoding="utf-8")
    assert lines_of(shown) == lines_of(code[code.index("from dataclasses") :])


def lines_of(code: str) -> list[str]:
    """The lines that say something, as they stand within their block."""
    return [line.strip() for line in code.splitlines() if line.strip()]


def test_the_examples_of_the_documentation_are_valid_parameters() -> None:
    text = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    given = yaml.safe_load(example)["training"]
    assert len(parameters(**given).reward_specs) == len(given["rewards"]) == 3


def test_parts_can_be_put_together_by_hand() -> None:
    rewards = Rewards({"dim": Part(BrightnessLikeness().freeze(), weight=2.0)})
    scores = scored(rewards)
    assert scores.reward < 0
    assert float(scores.value) == pytest.approx(2 * scores.reward)
