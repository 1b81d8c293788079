"""Writes a face network down as an ONNX file, without an exporter: the networks are a few convolutions.

Names of inputs and outputs are free in ONNX; order, shapes and dynamic axes are those of insightface's exports.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from rewardfl_trainer.tiny.face_networks import Detector, Landmarks, Recogniser

OPSET: Final = 17
IR_VERSION: Final = 8
INPUT: Final = "input.1"


@dataclass
class OnnxOps:
    """Appends a node for each operation; values are names."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def conv(self, layer: nn.Conv2d, x: str) -> str:
        """Convolve."""
        return self._node(
            "Conv",
            [x, self._constant(layer.weight), self._constant(cast(Tensor, layer.bias))],
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=list(cast(tuple[int, int], layer.padding)) * 2,
            dilations=list(layer.dilation),
        )

    def relu(self, x: str) -> str:
        """Rectify."""
        return self._node("Relu", [x])

    def add(self, x: str, y: str) -> str:
        """Add."""
        return self._node("Add", [x, y])

    def linear(self, layer: nn.Linear, x: str) -> str:
        """Flatten and multiply."""
        flat = self._node("Flatten", [x], axis=1)
        return self._node("Gemm", [flat, self._constant(layer.weight), self._constant(layer.bias)], transB=1)

    def rows(self, x: str, columns: int) -> str:
        """Rows in the order H W N C."""
        moved = self._node("Transpose", [x], perm=[2, 3, 0, 1])
        return self._node("Reshape", [moved, self._array(np.array([-1, columns], dtype=np.int64))])

    def sigmoid(self, x: str) -> str:
        """Logistic function."""
        return self._node("Sigmoid", [x])

    def _node(self, operation: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [name], name=f"{operation}_{len(self.nodes)}", **attributes))
        return name

    def _constant(self, tensor: Tensor) -> str:
        return self._array(tensor.detach().float().numpy())

    def _array(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name


def write(network: Detector | Recogniser | Landmarks, path: Path) -> None:
    """Write `network` to `path` and have ONNX check the file."""
    ops = OnnxOps()
    outputs = network.run(ops, INPUT)
    graph = helper.make_graph(
        ops.nodes,
        path.stem,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, _input_shape(network))],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in zip(outputs, _output_shapes(network), strict=True)
        ],
        ops.constants,
    )
    model = helper.make_model(
        graph, producer_name="rewardfl", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def _input_shape(network: nn.Module) -> list[str | int]:
    if isinstance(network, Detector):
        return ["N", 3, "H", "W"]
    return ["N", 3, 112, 112] if isinstance(network, Recogniser) else ["N", 3, 192, 192]


def _output_shapes(network: nn.Module) -> list[list[str | int]]:
    if isinstance(network, Detector):
        return [[f"A{stride}", columns] for columns in Detector.columns for stride in (8, 16, 32)]
    return [["N", 512]] if isinstance(network, Recogniser) else [["N", 212]]
