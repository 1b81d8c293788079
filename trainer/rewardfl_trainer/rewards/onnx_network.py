"""Reads an ONNX file into a frozen torch module, trusting nothing in it.

ONNX is protobuf: nothing in it is executed. Its external data may name any path, so only files inside the model's own
folder are read. Must not print: onnx2torch's advice about its conversions is of no use to a user.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx2torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.external_data_helper import load_external_data_for_model
from torch import nn

from rewardfl_api.errors import ExitCode, Reason, RewardFLError

ARCHIVE = "antelopev2.zip"
"""The archive of insightface's v0.7 release that holds the face networks."""

MIN_IR_VERSION = 3
"""onnx2torch reads no older files; a file that is not ONNX mostly parses with version 0."""

HINT = f"training.reward_model_path must be a folder with the unpacked ONNX files of insightface's {ARCHIVE}."


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what onnx2torch warns of while converting and while running."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def find_model(folder: Path, name: str) -> Path:
    """Return the path of `name` in `folder`, or in the folder of its own name that the archive unpacks to.

    Raises:
        RewardFLError: it is in neither (ModelNotFound, exit code 66).
    """
    for candidate in (folder / name, folder / Path(ARCHIVE).stem / name):
        if candidate.is_file():
            return candidate
    raise _missing(f"reward model {folder / name}: no such file.")


def load_network(path: Path, num_outputs: int) -> nn.Module:
    """Read an ONNX file with one input and `num_outputs` outputs as a frozen module in evaluation mode.

    The module takes the input tensor and returns one tensor, or a list of them where there are several.

    Raises:
        RewardFLError: missing, not ONNX, not of that form, or reading outside its folder (exit code 66).
    """
    model = _read(path)
    _load_external_data(model, path)
    num_found = len(model.graph.output)
    if num_found != num_outputs:
        raise _missing(f"reward model {path}: has {num_found} outputs, expected {num_outputs}.")
    try:
        with quiet():
            network: nn.Module = onnx2torch.convert(model)
    except (NotImplementedError, ValueError, KeyError, RuntimeError, onnx.shape_inference.InferenceError) as error:
        raise _missing(f"reward model {path}: cannot be converted to torch: {error}.") from error
    return network.requires_grad_(False).eval()


def _read(path: Path) -> onnx.ModelProto:
    """Parse the file without its external data."""
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError as error:
        raise _missing(f"reward model {path}: no such file.") from error
    except OSError as error:
        raise _missing(f"reward model {path}: cannot be read: {error.strerror}.") from error
    except DecodeError as error:
        raise _missing(f"reward model {path}: not an ONNX file.") from error
    if model.ir_version < MIN_IR_VERSION or not model.graph.node:
        raise _missing(f"reward model {path}: not an ONNX file.")
    return model


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Read tensors kept beside the model, after checking that each lies in the model's folder."""
    folder = path.parent.resolve()
    locations = [entry.value for tensor in _tensors(model.graph) for entry in tensor.external_data if entry.key == "location"]
    for location in locations:
        if "\0" in location or not (folder / location).resolve().is_relative_to(folder):
            raise RewardFLError(
                Reason.UNSAFE_PATH,
                f"reward model {path}: its external data {location!r} lies outside its folder; nothing was read.",
                f"Take the file from insightface's {ARCHIVE}.",
                ExitCode.MISSING_INPUT,
            )
    if not locations:
        return
    try:
        load_external_data_for_model(model, str(folder))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise _missing(f"reward model {path}: its external data cannot be read: {error}.") from error


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterable[onnx.TensorProto]:
    """Yield the tensors of a node's attribute."""
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _tensors(graph)


def _missing(message: str) -> RewardFLError:
    """Return the error of a reward model that cannot be used."""
    return RewardFLError(Reason.MODEL_NOT_FOUND, message, HINT, ExitCode.MISSING_INPUT)
