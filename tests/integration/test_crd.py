"""A real API server and the pydantic models refuse the same resources, with messages that say what to change."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rewardfl_api import roll
from rewardfl_api.job import RewardFLJob
from rewardfl_api.validation import problems_of
from tests.cluster import ClusterError, LocalCluster
from tests.cluster.paths import REPOSITORY
from tests.unit.roll_example import DOCUMENT_EXAMPLE, ROLL_EXAMPLE

pytestmark = pytest.mark.slow

CRD = REPOSITORY / "crds" / "rewardfl.io_rewardfljobs.yaml"
EXAMPLES = sorted((REPOSITORY / "examples").glob("rewardfljob-*.yaml"))
BASE: dict[str, Any] = yaml.safe_load((REPOSITORY / "examples" / "rewardfljob-tiny.yaml").read_text(encoding="utf-8"))

REFUSED = {
    "numFrames not 4k+1": ({"training": {"numFrames": 80}}, "numFrames=80: must be 4k+1 (77 or 81)"),
    "window upside down": ({"training": {"midTimestep": 6, "finalTimestep": 5}}, "midTimestep=6: must not be after"),
    "window beyond the end": ({"training": {"finalTimestep": 8}}, "finalTimestep=8"),
    "boundaries upside down": ({"training": {"maxTimestepBoundary": 0.5}}, "must not be above"),
    "dit2 never used": ({"training": {"minTimestepBoundary": 1.0}}, "set it to 0.9"),
    "ROLL's loss in fp32": ({"training": {"compat": "roll"}}, "must be bf16"),
    "height without width": ({"training": {"height": 480}}, "give both"),
    "height no multiple of 16": ({"training": {"height": 481, "width": 480}}, "multiple of 16"),
    "unknown trainable model": (
        {"training": {"trainableModels": "dit3", "loraBaseModel": None}},
        "known are dit, dit2, vae, text_encoder",
    ),
    "LoRA on another model": ({"training": {"trainableModels": "dit"}}, "leave loraBaseModel out"),
    "unknown extra input": ({"training": {"extraInputs": "input_video"}}, "known are input_image, end_image"),
    "unknown layout": ({"training": {"exportFormats": "kohya"}}, "known are diffsynth, comfyui, diffusers"),
    "no layout": ({"training": {"exportFormats": ""}}, "diffsynth, comfyui, diffusers"),
    "a reward twice": ({"training": {"rewards": [{"name": "face_identity"}] * 2}}, "Duplicate value"),
    "no reward counts": ({"training": {"rewards": [{"name": "face_identity", "weight": 0}]}}, "every weight is 0"),
    "a reward outside Python's names": ({"training": {"rewards": [{"name": "../evil.py:Reward"}]}}, "rewards"),
    "two kinds of evaluation rows": ({"training": {"evalRows": 2, "evalDataset": "s3://b/d/"}}, "give it or"),
    "nothing to evaluate": ({"training": {"evalSteps": 10}}, "nothing to evaluate; set"),
    "no models": ({"training": {"modelPaths": None}}, "training.modelPaths: give the model files"),
    "negative learning rate": ({"training": {"learningRate": -1}}, "learningRate"),
    "unknown schedule": ({"training": {"lrSchedulerType": "linaer"}}, "lrSchedulerType"),
    "misspelt parameter": ({"training": {"learningRat": 1}}, "learningRat"),
    "misspelt field": ({"node": 1}, "node"),
    "no nodes": ({"nodes": 0}, "nodes"),
    "processes with GPUs": ({"gpusPerNode": 1, "processesPerNode": 2}, "processesPerNode"),
    "wrong batch size": (
        {"training": {"trainBatchSize": 3}},
        "perDeviceTrainBatchSize 1 * gradientAccumulationSteps 1 * world size 2",
    ),
    "two caches": ({"cache": {"hostPath": "/c", "emptyDir": {}}}, "give one of"),
    "preset and config": ({"deepspeed": {"preset": "zero2", "config": {}}}, "not both"),
    "unknown preset": ({"deepspeed": {"preset": "zero4"}}, "zero4"),
    "output no bucket": ({"output": "/tmp/out"}, "output"),
    "a guard that watches nothing": ({"guard": {"action": "Suspend"}}, "guard: watches nothing; give heldOut, kl or noFace"),
    "a guard of what is not measured": (
        {"guard": {"heldOut": {}}, "training": {"evalRows": 2}},
        "guard.heldOut: no held-out reward is measured while training; set training.evalSteps",
    ),
    "a guard that believes a single video": (
        {"guard": {"heldOut": {}}, "training": {"evalRows": 1, "evalSteps": 5}},
        "guard.heldOut.minDelta=0: one evaluation video cannot tell a fall from chance",
    ),
    "a guard of a KL that is not computed": (
        {"guard": {"kl": {"max": 1}}, "training": {"klWeight": 0}},
        "guard.kl: with training.klWeight=0 no KL is computed",
    ),
    "a guard of faces that nobody looks for": (
        {"guard": {"noFace": {"maxFraction": 0.5}}, "training": {"rewards": [{"name": "temporal_consistency"}]}},
        "guard.noFace: temporal_consistency looks for no faces",
    ),
    "a guard without a bound": ({"guard": {"kl": {"steps": 5}}}, "guard.kl.max"),
    "credentials in the endpoint": ({"storage": {"endpoint": "https://me:secret@s3"}}, "endpoint"),
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The tiny example with `changes` merged into its spec; None removes a field."""
    manifest = copy.deepcopy(BASE)
    for field, value in changes.items():
        if isinstance(value, dict) and isinstance(manifest["spec"].get(field), dict) and field == "training":
            manifest["spec"][field].update(value)
            for name in [name for name, item in value.items() if item is None]:
                del manifest["spec"][field][name]
        else:
            manifest["spec"][field] = value
    return manifest


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.start(control_plane_only=True) as running:
        running.kubectl("apply", "-f", str(CRD))
        running.wait_for_definition("rewardfljobs.rewardfl.io")
        yield running


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_accepted_by_both(cluster: LocalCluster, path: Any) -> None:
    RewardFLJob.parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    cluster.kubectl("apply", "--dry-run=server", "-f", str(path))


@pytest.mark.parametrize("text", [ROLL_EXAMPLE, DOCUMENT_EXAMPLE], ids=["pipeline", "document"])
def test_what_is_converted_from_roll_is_accepted(cluster: LocalCluster, text: str) -> None:
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=roll.convert(text).render())


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_by_both_and_the_message_says_what_to_change(cluster: LocalCluster, name: str) -> None:
    changes, expected = REFUSED[name]
    manifest = changed(changes)
    with pytest.raises(ValidationError):
        RewardFLJob.parse(manifest)
    assert len(problems_of(manifest)) == 1
    with pytest.raises(ClusterError) as refused:
        cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
    assert expected in str(refused.value)


def test_the_api_server_fills_in_the_models_defaults(cluster: LocalCluster) -> None:
    filled = json.loads(cluster.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(BASE)))
    assert filled["spec"] == RewardFLJob.parse(BASE).spec.to_kubernetes()


@pytest.mark.parametrize("name", ["-begins-with-dash", "Upper", "1digit", "x" * 53])
def test_a_name_that_pods_cannot_be_called_after_is_refused(cluster: LocalCluster, name: str) -> None:
    manifest = copy.deepcopy(BASE)
    manifest["metadata"]["name"] = name
    assert [problem.field for problem in problems_of(manifest)] == ["metadata.name"]
    with pytest.raises(ClusterError, match=r"metadata\.name"):
        cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))


def test_a_rewards_options_are_kept_as_they_are_written_and_cannot_be_changed_under_a_running_job(cluster: LocalCluster) -> None:
    options = {"cell_pixels": 8, "Nested": {"free form": [1, 2.5, True, "text"]}}
    manifest = changed({"training": {"rewards": [{"name": "package.module:Class", "options": options}]}})
    manifest["metadata"]["name"] = "options"
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    stored = json.loads(cluster.kubectl("get", "rfl", "options", "-o", "json"))
    assert stored["spec"]["training"]["rewards"] == [{"name": "package.module:Class", "weight": 1, "options": options}]
    (spec,) = RewardFLJob.parse(stored).spec.training.reward_specs
    assert spec.options == options
    manifest["spec"]["training"]["rewards"][0]["options"] = {"cell_pixels": 16}
    with pytest.raises(ClusterError, match="cannot be changed while the job runs"):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    cluster.kubectl("delete", "rewardfljob", "options")


def test_kubectl_shows_the_columns_that_people_look_at(cluster: LocalCluster) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(BASE))
    header = cluster.kubectl("get", "rfl").splitlines()[0]
    assert header.split() == ["NAME", "PHASE", "STEP", "PROGRESS", "REWARD", "ETA", "AGE"]
    cluster.kubectl("delete", "rewardfljob", BASE["metadata"]["name"])
