"""Files that are not the face networks they should be: named, refused, nothing executed."""

import warnings
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from rewardfl_api.errors import ExitCode, Reason, RewardFLError
from rewardfl_trainer.rewards.face import FaceReward
from rewardfl_trainer.rewards.onnx_network import load_network
from tests.unit.face_networks import write_detector, write_recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("antelopev2")
    write_detector(path)
    write_recogniser(path)
    return path


def copy(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def refusal(folder: Path) -> RewardFLError:
    with pytest.raises(RewardFLError) as caught:
        FaceReward.load(folder)
    return caught.value


@pytest.mark.parametrize("name", ["scrfd_10g_bnkps.onnx", "glintr100.onnx"])
def test_missing_file_is_named_with_the_archive_that_has_it(folder: Path, tmp_path: Path, name: str) -> None:
    (copy(folder, tmp_path) / name).unlink()

    error = refusal(tmp_path)

    assert (error.reason, error.exit_code) == (Reason.MODEL_NOT_FOUND, ExitCode.MISSING_INPUT)
    assert str(tmp_path / name) in error.message
    assert "antelopev2.zip" in error.hint
    assert "training.reward_model_path" in error.hint


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x04\x95pickle", b"<html></html>"]
)
def test_file_that_is_not_onnx_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    (copy(folder, tmp_path) / "glintr100.onnx").write_bytes(content)

    error = refusal(tmp_path)

    assert (error.reason, error.exit_code) == (Reason.MODEL_NOT_FOUND, ExitCode.MISSING_INPUT)
    assert "glintr100.onnx: not an ONNX file" in error.message


def test_truncated_file_is_refused(folder: Path, tmp_path: Path) -> None:
    path = copy(folder, tmp_path) / "glintr100.onnx"
    path.write_bytes(path.read_bytes()[:2000])

    assert refusal(tmp_path).exit_code == ExitCode.MISSING_INPUT


def test_network_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path)
    (tmp_path / "scrfd_10g_bnkps.onnx").write_bytes((folder / "glintr100.onnx").read_bytes())

    assert "has 1 outputs, expected 9" in refusal(tmp_path).message


def test_unknown_operator_is_refused(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mystery", ["x"], ["y"])], "graph", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]), str(tmp_path / "net.onnx"))

    with pytest.raises(RewardFLError, match=r"cannot be converted to torch.*Mystery"):
        load_network(tmp_path / "net.onnx", num_outputs=1)


def with_external_data(folder: Path, location: str) -> None:
    """Make glintr100.onnx read a tensor from `location`."""
    path = folder / "glintr100.onnx"
    model = onnx.load(str(path))
    tensor = max(model.graph.initializer, key=lambda candidate: len(candidate.raw_data))
    (folder / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())


def test_external_data_inside_the_folder_is_read(folder: Path, tmp_path: Path) -> None:
    crops = torch.rand(2, 3, 112, 112)
    expected = load_network(folder / "glintr100.onnx", num_outputs=1)(crops)
    with_external_data(copy(folder, tmp_path), "weights.bin")

    torch.testing.assert_close(load_network(tmp_path / "glintr100.onnx", num_outputs=1)(crops), expected)


@pytest.mark.parametrize("location", ["../weights.bin", "inner/../../weights.bin", "{absolute}", "link.bin"])
def test_external_data_outside_the_folder_is_refused(folder: Path, tmp_path: Path, location: str) -> None:
    inside = copy(folder, tmp_path / "models")
    outside = tmp_path / "weights.bin"
    with_external_data(inside, location.format(absolute=outside))
    outside.write_bytes((inside / "weights.bin").read_bytes())
    (inside / "inner").mkdir()
    (inside / "link.bin").symlink_to(outside)

    error = refusal(inside)

    assert (error.reason, error.exit_code) == (Reason.UNSAFE_PATH, ExitCode.MISSING_INPUT)
    assert "lies outside its folder" in error.message


def test_missing_external_data_is_named(folder: Path, tmp_path: Path) -> None:
    with_external_data(copy(folder, tmp_path), "gone.bin")

    assert "gone.bin" in refusal(tmp_path).message


def test_external_data_hidden_in_a_node_is_refused_too(tmp_path: Path) -> None:
    tensor = TensorProto(name="hidden", dims=[1], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    graph = helper.make_graph([node], "graph", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    (tmp_path / "net.onnx").write_bytes(helper.make_model(graph).SerializeToString())

    with pytest.raises(RewardFLError, match="lies outside its folder"):
        load_network(tmp_path / "net.onnx", num_outputs=1)


def test_folder_inside_the_unpacked_archive_is_found(folder: Path, tmp_path: Path) -> None:
    copy(folder, tmp_path / "antelopev2")

    assert isinstance(FaceReward.load(tmp_path), FaceReward)


def test_loading_and_scoring_are_quiet(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video = torch.zeros(1, 3, 5, 32, 32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reward = FaceReward.load(folder)
        reward(video, reward.reference(video))

    assert caught == []
    assert capfd.readouterr() == ("", "")
