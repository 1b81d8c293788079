"""`rewardfl validate` names everything that is wrong, with file, line, field, value and remedy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from rewardfl_api.cli import app
from rewardfl_api.cli.validate import memory_line
from rewardfl_api.errors import ExitCode
from rewardfl_api.job import RewardFLJob
from rewardfl_api.validation import problems_of
from tests.cluster.paths import REPOSITORY
from tests.unit.own_rewards import importable

runner = CliRunner()
EXAMPLES = sorted((REPOSITORY / "examples").glob("rewardfljob-*.yaml"))
BASE: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / "rewardfljob-tiny.yaml").read_text(encoding="utf-8"))

NOT_ON_SHAPES = """
from rewardfl_trainer.rewards.base import Reference, Reward, RewardResult


class Median(Reward[Reference, RewardResult]):
    reference_type = Reference

    def reference(self, video_B3THW):
        return Reference()

    def forward(self, video_B3THW, reference):
        video_B3THW.detach().numpy()
"""
"""A reward that wants the values of the pixels."""


def changed(**spec: Any) -> dict[str, Any]:
    """The tiny example with fields of its spec replaced; those of training one by one."""
    body = copy.deepcopy(BASE)
    body["spec"]["training"].update(spec.pop("training", {}))
    body["spec"].update(spec)
    return body


def said(**spec: Any) -> list[str]:
    return [problem.text for problem in problems_of(changed(**spec))]


def validate(text: str, *options: str) -> Result:
    return runner.invoke(app, ["validate", "-f", "-", "--no-estimate", *options], input=text, prog_name="rewardfl")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    answer = runner.invoke(app, ["validate", "-f", str(path), "--no-estimate"])
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert "is valid" in answer.stdout


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"nodes": "2"}, "spec.nodes=2: must be an integer, not a string; remove the quotes"),
        ({"nodes": 2.5}, "spec.nodes=2.5: must be an integer, not a number; Pods"),
        ({"nodes": True}, "spec.nodes=true: must be an integer, not a boolean; Pods"),
        ({"nodes": 0}, "spec.nodes=0: must be at least 1"),
        ({"nodes": 2000}, "spec.nodes=2000: must be at most 1024"),
        ({"node": 1}, "spec.node=1: unknown field; did you mean nodes?"),
        ({"learningRate": 1}, "spec.learningRate=1: unknown field; it belongs below spec.training"),
        ({"training": {"num_frames": 9}}, "spec.training.num_frames=9: unknown field; write numFrames"),
        ({"training": {"seed": "x"}}, "spec.training.seed=x: must be an integer, not a string; Seed of everything random"),
        ({"training": {"klWeight": "1e-3"}}, "spec.training.klWeight=1e-3: must be a number, not a string; remove the quotes"),
        ({"training": {"adamBeta1": 1}}, "spec.training.adamBeta1=1: must be below 1"),
        ({"training": {"height": 100, "width": 96}}, "spec.training.height=100: must be a multiple of 16; use 96 or 112"),
        ({"training": {"dtype": "bf61"}}, "spec.training.dtype=bf61: must be one of bf16, fp32; did you mean bf16?"),
        ({"training": {"modelPaths": "/x"}}, "spec.training.modelPaths=/x: must be a list, not a string; write a list: [...]"),
        ({"training": {"modelName": "wan9"}}, "spec.training.modelName=wan9: unknown; use wan2_2"),
        ({"training": {"numFrames": 80}}, "spec.training.numFrames=80: must be 4k+1 (77 or 81)"),
        ({"training": {"rewards": [{"name": "nonsense"}]}}, "spec.training.rewards[0].name=nonsense: unknown; use face_identity"),
        ({"output": "/tmp/x"}, "spec.output=/tmp/x: is not written as it must be; write s3://bucket/folder/"),
        ({"training": {"midTimestep": 7, "finalTimestep": 5}}, "spec.training.midTimestep=7: must not be after finalTimestep=5"),
        ({"gpusPerNode": 1, "processesPerNode": 2}, "spec.processesPerNode=2: only for CPU training"),
        ({"cache": {"hostPath": "/c", "emptyDir": {}}}, "spec.cache: give one of hostPath, emptyDir"),
        ({"guard": {}}, "spec.guard.action: the guard watches nothing; give heldOut, kl or noFace as well, or remove guard"),
        ({"guard": {"action": "Pause", "kl": {"max": 1}}}, "spec.guard.action=Pause: must be one of Stop, Suspend"),
        ({"guard": {"kl": {"max": 0}}}, "spec.guard.kl.max=0: must be above 0"),
        ({"guard": {"kl": {"max": 1, "steps": 1001}}}, "spec.guard.kl.steps=1001: must be at most 1000"),
        ({"guard": {"noFace": {"maxFraction": 1}}}, "spec.guard.noFace.maxFraction=1: must be below 1"),
        (
            {"guard": {"heldOut": {"patience": 2}}},
            "spec.guard.heldOut.patience=2: no held-out reward is measured while training; set training.evalRows (or "
            "evalDataset) and training.evalSteps",
        ),
        (
            {"guard": {"heldOut": {"patience": 2}}, "training": {"evalRows": 2}},
            "spec.guard.heldOut.patience=2: no held-out reward is measured while training; set training.evalSteps",
        ),
        (
            {"guard": {"heldOut": {"minDelta": 0}}, "training": {"evalRows": 1, "evalSteps": 5}},
            "spec.guard.heldOut.minDelta=0: one evaluation video cannot tell a fall from chance; raise training.evalRows or "
            "evalNoiseSeeds, or set minDelta",
        ),
        (
            {"guard": {"kl": {"max": 0.5}}, "training": {"klWeight": 0}},
            "spec.guard.kl.max=0.5: with training.klWeight=0 no KL is computed; raise it, or remove guard.kl",
        ),
        (
            {"guard": {"noFace": {"maxFraction": 0.5}}, "training": {"rewards": [{"name": "temporal_consistency"}]}},
            "spec.guard.noFace.maxFraction=0.5: temporal_consistency looks for no faces; add face_identity to training.rewards",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_field_value_and_remedy(spec: dict[str, Any], expected: str) -> None:
    assert any(text.startswith(expected) for text in said(**spec)), said(**spec)
    assert len(said(**spec)) == 1


def test_everything_that_is_wrong_is_told_at_once() -> None:
    texts = said(
        nodes=0,
        foo=1,
        cache={"hostPath": "/c", "emptyDir": {}},
        training={"numFrames": 80, "modelName": "wan9", "midTimestep": 9, "finalTimestep": 8, "evalRows": 1, "evalDataset": "s3://bkt/d/"},
    )  # fmt: skip
    fields = [text.partition(":")[0].partition("=")[0] for text in texts]
    assert fields == [
        "spec.nodes", "spec.foo", "spec.training.modelName", "spec.training.numFrames", "spec.cache",
        "spec.training.midTimestep", "spec.training.finalTimestep", "spec.training.evalRows",
    ]  # fmt: skip


def test_a_contradiction_that_only_follows_from_another_mistake_is_not_told() -> None:
    assert len(said(training={"numInferenceSteps": "many", "finalTimestep": 19})) == 1
    assert len(said(training={"min_timestep_boundary": 0.9, "minTimestepBoundary": None})) == 1


def test_null_is_the_same_as_left_out_as_it_is_for_the_api_server() -> None:
    assert said(nodes=None, training={"maxSteps": None}) == []
    assert said(dataset=None) == [
        "spec.dataset: is missing; give it: Folder with metadata.csv (columns video, prompt) and the videos"
    ]


def test_a_template_and_a_rewards_options_may_hold_anything() -> None:
    assert said(template={"spec": {"any": None}}, training={"rewards": [{"name": "a.b:C", "options": {"x_y": [None]}}]}) == []


def test_credentials_in_an_endpoint_are_not_shown() -> None:
    (text,) = said(storage={"endpoint": "https://me:hunter2@s3.example.com"})
    assert "hunter2" not in text
    body = changed(storage={"endpoint": "https://me:hunter2@s3.example.com"})
    assert "hunter2" not in validate(json.dumps(body), "-o", "json").output


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ({"apiVersion": "rewardfl.io/v2"}, "apiVersion=rewardfl.io/v2: unknown version; write rewardfl.io/v1alpha1"),
        ({"metadata": {}}, "metadata.name: is missing"),
        ({"metadata": {"name": "Upper"}}, "metadata.name=Upper: cannot be a host name"),
        ({"metadata": {"name": "x" * 53}}, "must have at most 52 characters"),
        ({"metadata": {"name": "a", "labels": {"rank": 1}}}, 'metadata.labels.rank=1: must be a string; write "1"'),
        ({"dataset": "s3://b/d"}, "dataset: unknown field; it belongs below spec"),
        ({"spec": None}, "spec: is missing"),
        ({"spec": {"training": 3}}, "spec.training=3: must be a mapping, not an integer"),
    ],
)
def test_mistakes_outside_the_spec_are_told(head: dict[str, Any], expected: str) -> None:
    assert any(expected in problem.text for problem in problems_of({**BASE, **head}))


def test_what_the_models_read_otherwise_than_the_api_server_is_told() -> None:
    lax = changed(nodes="2")
    lax["spec"]["training"]["num_frames"] = lax["spec"]["training"].pop("numFrames")
    RewardFLJob.parse(lax)
    assert len(problems_of(lax)) == 2


def test_each_problem_stands_in_a_line_with_file_line_and_document(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    good = yaml.safe_dump(BASE, sort_keys=False)
    bad = yaml.safe_dump(changed(nodes=0, foo=1), sort_keys=False)
    file.write_text(f"{good}---\n{bad}---\nkind: Secret\n", encoding="utf-8")
    answer = runner.invoke(app, ["validate", "-f", str(file), "--no-estimate"], prog_name="rewardfl")
    line = good.count("\n") + 2 + bad.splitlines().index("  nodes: 0")
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert answer.stdout.splitlines()[1] == f"{file}:{line} (document 2, face-tiny): spec.nodes=0: must be at least 1"
    assert len(answer.stdout.splitlines()) == 3
    assert answer.stderr.splitlines() == [
        f"rewardfl validate: {file}, document 3: a Secret, which is not looked at",
        "rewardfl validate: 2 problems in 1 of 2 RewardFLJobs",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c", "standard input:1: this is no YAML"),
        ("spec: {nodes: 1, nodes: 2}", "spec.nodes: is given twice, first in line 1; remove one"),
        ("- 1", "not a resource"),
        ("a: &a [*a]", "this is no YAML"),
    ],
)
def test_what_is_no_resource_is_one_line(text: str, expected: str) -> None:
    answer = validate(text)
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert expected in answer.stdout
    assert "Traceback" not in answer.output


def test_no_job_at_all_and_a_file_that_is_not_there_are_one_line() -> None:
    assert validate("kind: ConfigMap").stderr.splitlines()[1] == "rewardfl validate: no RewardFLJob in -"
    answer = runner.invoke(app, ["validate", "-f", "/nowhere.yaml"])
    assert (answer.exit_code, answer.stderr.count("\n")) == (ExitCode.MISSING_INPUT, 1)
    assert "/nowhere.yaml: No such file" in answer.stderr


def test_yaml_means_what_it_means_to_kubectl() -> None:
    text = yaml.safe_dump(BASE).replace("learningRate: 0.001", "learningRate: 1e-3")
    assert "1e-3" in text
    assert validate(text.replace("seed: 42", "seed: 4_2")).exit_code == 0
    assert validate(json.dumps(BASE)).exit_code == 0


def test_the_items_of_a_list_are_checked_each() -> None:
    answer = validate(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [BASE, changed(nodes=0)]}), "-o", "json")
    report = json.loads(answer.stdout)
    assert [document["valid"] for document in report["documents"]] == [True, False]
    (problem,) = report["documents"][1]["problems"]
    assert problem.pop("line") > 1
    assert problem == {"field": "spec.nodes", "value": 0, "message": "must be at least 1", "remedy": ""}


def test_the_estimate_is_one_line_for_gpus_and_none_for_cpus() -> None:
    answer = runner.invoke(app, ["validate", "-f", str(REPOSITORY / "examples" / "rewardfljob-tiny.yaml")])
    assert "memory: not estimated, since it trains on CPUs" in answer.stdout


def test_an_estimate_is_told_in_one_line() -> None:
    small = {"gpu_gigabytes": 24, "preset": None, "use_gradient_checkpointing_offload": None}
    large = {"gpu_gigabytes": 48, "preset": "zero3", "use_gradient_checkpointing_offload": True}
    answer = {"needed_bytes": 47.9e9, "staged_bytes": 69.3e9, "fits": [small, large]}
    assert memory_line(answer) == (
        "memory: a GPU needs 47.9 GB as it is set; one of 48 GB is enough with deepspeed.preset zero3 and "
        "useGradientCheckpointingOffload; models to stage 69.3 GB"
    )
    assert "no GPU is large enough" in memory_line({**answer, "fits": [small]})


def asked(**training: object) -> Result:
    body = yaml.safe_load((REPOSITORY / "examples" / "rewardfljob-eight-gpus.yaml").read_text(encoding="utf-8"))
    body["spec"]["training"].update(training)
    return runner.invoke(app, ["validate", "-f", "-"], input=json.dumps(body))


@pytest.mark.slow
def test_what_the_trainer_would_refuse_is_told() -> None:
    answer = asked(numInferenceSteps=1, midTimestep=0, finalTimestep=0)
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert "the trainer would refuse it: training.trainableModels=dit2: no gradient reaches it" in answer.stdout


@pytest.mark.slow
def test_a_reward_that_does_not_run_on_shapes_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(NOT_ON_SHAPES, encoding="utf-8")
    with importable(tmp_path):
        answer = asked(rewards=[{"name": "my_rewards:Median"}], numFrames=5, height=16, width=16)
    assert answer.exit_code == 0
    assert "  memory: not estimated: it cannot be estimated: " in answer.stdout
    assert "my_rewards:Median must run on shapes without data" in answer.stdout


def test_a_reward_that_only_the_image_has_is_no_mistake() -> None:
    answer = asked(rewards=[{"name": "face_identity"}, {"name": "my_rewards.exposure:Exposure"}])
    assert answer.exit_code == 0
    assert "  memory: not estimated, since my_rewards is not installed here; the image has to have it" in answer.stdout


def test_models_that_only_the_pods_have_are_no_mistake() -> None:
    answer = asked(modelPaths=["/mnt/models/wan22_paths.json"])
    assert answer.exit_code == 0
    assert "  memory: not estimated: training.modelPaths=/mnt/models/wan22_paths.json: " in answer.stdout


def test_submit_refuses_a_wrong_manifest_before_it_looks_for_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    answer = runner.invoke(app, ["submit", "-f", "-", "--name", "Bad"], input=json.dumps(changed(nodes=0)), prog_name="rewardfl")
    assert answer.exit_code == ExitCode.BAD_CONFIGURATION
    assert [line.partition(": standard input:1: ")[2].partition(":")[0] for line in answer.stderr.splitlines()] == [
        "metadata.name=Bad",
        "spec.nodes=0",
    ]
