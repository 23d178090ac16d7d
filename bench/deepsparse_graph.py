"""A float32 ONNX encoder as the quantized graph that DeepSparse runs fast. Runs in the peers' environment.

DeepSparse's own training tool wrote such graphs from quantization-aware training: linear layers as QuantizeLinear,
MatMulInteger, Add of an int32 bias, Cast, Mul; the two products of attention as QLinearMatMul. Left as QDQ pairs the
same model runs several times slower. Weights are symmetric int8 per tensor, activations uint8 with static ranges; keys
are symmetric around 128, without which attention leaves the fast path.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Range = tuple[float, float]


def quantize(source: Path, target: Path, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Write the quantized graph; ranges come from running the float32 one on `inputs`."""
    import onnx

    model = onnx.load(source)
    ranges = _ranges(source, model, inputs)
    rewriter = _Rewriter(model.graph, ranges)
    rewriter.rewrite()
    model.ir_version = 8  # the newest that DeepSparse 1.8 reads
    onnx.save(model, target)


def _ranges(source: Path, model: Any, inputs: Sequence[Mapping[str, Any]]) -> dict[str, Range]:
    """Return least and largest value of everything that goes into or comes out of a product."""
    import onnx
    import onnxruntime

    constants = {tensor.name for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    names = {name for node in products for name in (*node.input, *node.output)} - constants
    probed = onnx.load(source)
    probed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sorted(names))
    session = onnxruntime.InferenceSession(probed.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, Range] = {}
    for values in inputs:
        for name, value in zip(sorted(names), session.run(sorted(names), dict(values)), strict=True):
            least, largest = found.get(name, (0.0, 0.0))
            found[name] = min(least, float(value.min())), max(largest, float(value.max()))
    return found


class _Rewriter:
    """Walks the nodes once and replaces products."""

    def __init__(self, graph: Any, ranges: Mapping[str, Range]) -> None:
        self._graph = graph
        self._ranges = ranges
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in graph.node for name in node.output}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        self._quantized: dict[str, tuple[str, str, str, float]] = {}
        self._made: list[Any] = []
        self._dropped: set[str] = set()

    def rewrite(self) -> None:
        """Replace all nodes of the graph."""
        for node in list(self._graph.node):
            if node.output and node.output[0] in self._dropped:
                continue
            if node.op_type == "MatMul" and node.input[1] in self._weights and not self._is_head(node):
                self._linear(node)
            elif node.op_type == "MatMul" and node.input[1] not in self._weights:
                self._attention(node)
            else:
                self._made.append(node)
        del self._graph.node[:]
        self._graph.node.extend(self._made)
        used = {name for node in self._made for name in node.input}
        kept = [tensor for tensor in self._graph.initializer if tensor.name in used]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)

    def _is_head(self, node: Any) -> bool:
        return bool(self._weights[node.input[1]].dims[1] <= 2)  # start and end; stays float32 in every engine

    def _linear(self, node: Any) -> None:
        """MatMul and the Add of its bias: integers until the end."""
        from onnx import TensorProto, numpy_helper

        weight = numpy_helper.to_array(self._weights[node.input[1]])
        scale = float(np.abs(weight).max()) / 127
        levels = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
        x, _, zero, x_scale = self._quantize(node.input[0], symmetric=False)
        name = node.output[0]
        w, w_zero = self._constant(f"{name}_w", levels), self._constant(f"{name}_w_zero", np.array(0, np.int8))
        last = self._node("MatMulInteger", [x, w, zero, w_zero], f"{name}_sums")
        final = name
        adds = self._consumers[name]
        bias = next((i for i in adds[0].input if i in self._weights), None) if len(adds) == 1 else None
        if bias is not None and adds[0].op_type == "Add":
            final = adds[0].output[0]
            self._dropped.add(final)
            rounded = np.round(numpy_helper.to_array(self._weights[bias]) / (scale * x_scale)).astype(np.int32)
            last = self._node("Add", [last, self._constant(f"{name}_bias", rounded)], f"{name}_biased")
        last = self._node("Cast", [last], f"{name}_float", to=TensorProto.FLOAT)
        factor = self._constant(f"{name}_factor", np.array(scale * x_scale, np.float32))
        self._node("Mul", [last, factor], final)

    def _attention(self, node: Any) -> None:
        """QLinearMatMul, and back to float."""
        is_scores = not self._comes_from_softmax(node.input[0])
        left, left_scale, left_zero, _ = self._quantize(node.input[0], symmetric=False)
        right, right_scale, right_zero, _ = self._quantize(node.input[1], symmetric=is_scores)
        name = node.output[0]
        scale, zero, _ = self._parameters(name, symmetric=False)
        inputs = [left, left_scale, left_zero, right, right_scale, right_zero, scale, zero]
        product = self._node("QLinearMatMul", inputs, f"{name}_levels")
        self._node("DequantizeLinear", [product, scale, zero], name)

    def _comes_from_softmax(self, name: str) -> bool:
        while name in self._producers and self._producers[name].op_type in ("Identity", "Cast"):
            name = self._producers[name].input[0]
        return name in self._producers and self._producers[name].op_type == "Softmax"

    def _quantize(self, name: str, *, symmetric: bool) -> tuple[str, str, str, float]:
        """Quantize a tensor once, however many products read it; returns levels, scale, zero and the scale's value."""
        if name not in self._quantized:
            scale, zero, value = self._parameters(name, symmetric=symmetric)
            levels = self._node("QuantizeLinear", [name, scale, zero], f"{name}_quantized")
            self._quantized[name] = levels, scale, zero, value
        return self._quantized[name]

    def _parameters(self, name: str, *, symmetric: bool) -> tuple[str, str, float]:
        least, largest = self._ranges[name]
        if symmetric:
            value, zero = max(-least, largest) / 127, 128
        else:
            value = (largest - least) / 255
            zero = round(-least / value)
        scale = self._constant(f"{name}_scale", np.array(value, np.float32))
        return scale, self._constant(f"{name}_zero", np.array(zero, np.uint8)), value

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(value, name)
        if name not in self._weights:
            self._weights[name] = tensor
            self._graph.initializer.append(tensor)
        return name

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self._made.append(helper.make_node(operator, list(inputs), [output], name=f"{output}_node", **attributes))
        return output
