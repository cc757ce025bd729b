"""The folded network as ONNX graphs, for the inference engines we compare with.

Built node by node, in the forms that ran fastest: matrix products with fused activations in a stream, convolutions
offline. BatchNorm is folded, one-slope PReLU is LeakyRelu, gate networks are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dyncp_kernels._optional import require
from dyncp_kernels.nn.inference import InferenceConvFSENet

__all__ = ["offline_graph", "stream_graph", "stream_graph_with_histories"]

_OPSET = 17
_IR_VERSION = 9
_END = np.iinfo(np.int64).max


class _Graph:
    def __init__(self) -> None:
        self._helper = require("onnx.helper", "bench")
        self._to_tensor = require("onnx.numpy_helper", "bench").from_array
        self._float = require("onnx", "bench").TensorProto.FLOAT
        self._nodes: list[Any] = []
        self._constants: dict[str, NDArray[Any]] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, *shape: int) -> str:
        self._inputs.append(self._helper.make_tensor_value_info(name, self._float, shape))
        return name

    def output(self, name: str, *shape: int) -> str:
        self._outputs.append(self._helper.make_tensor_value_info(name, self._float, shape))
        return name

    def constant(self, name: str, value: Tensor | NDArray[Any]) -> str:
        self._constants[name] = np.ascontiguousarray(value, dtype=np.float32)
        return name

    def integers(self, *values: int) -> str:
        name = "_".join(("i", *map(str, values)))
        self._constants[name] = np.array(values, dtype=np.int64)
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes(kind, inputs, [name], **attributes)
        return name

    def nodes(self, kind: str, inputs: list[str], names: list[str], **attributes: Any) -> None:
        self._nodes.append(self._helper.make_node(kind, inputs, names, **attributes))

    def activation(self, value: str, slope: ArrayLike | None, name: str) -> str:
        if slope is None:
            return self.node("Relu", [value], name)
        return self.node("LeakyRelu", [value], name, alpha=float(np.asarray(slope).reshape(())))

    def gemm(self, value: str, weight: Tensor, bias: Tensor, name: str) -> str:
        constants = [self.constant(f"{name}_weight", weight.T), self.constant(f"{name}_bias", bias)]
        return self.node("Gemm", [value, *constants], name)

    def pointwise(self, value: str, weight: Tensor, bias: Tensor, name: str) -> str:
        constants = [self.constant(f"{name}_weight", weight[..., None]), self.constant(f"{name}_bias", bias)]
        return self.node("Conv", [value, *constants], name, kernel_shape=[1])

    def bytes(self) -> bytes:
        constants = [self._to_tensor(value, name) for name, value in self._constants.items()]
        graph = self._helper.make_graph(self._nodes, "conv_fsenet", self._inputs, self._outputs, constants)
        opset = self._helper.make_opsetid("", _OPSET)
        model = self._helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return model.SerializeToString()


def _split_gates(graph: _Graph, network: InferenceConvFSENet, batch: int, frames: int | None) -> list[dict[str, str]]:
    """Name of the float gate of each site of each block, from one input ``gates``; nothing without gates."""
    config = network.config
    # The last one is 0 where no hidden channel is kept: then the block's output is its input.
    widths = {
        "out": config.channels * config.gates_output_channels,
        "hidden": config.hidden * config.gates_hidden_channels,
        "any": int(config.gates_hidden_channels),
    }
    widths = {site: width for site, width in widths.items() if width}
    if not widths:
        return [{}] * config.blocks
    shape = (batch, config.blocks * sum(widths.values())) + (() if frames is None else (frames,))
    gates = graph.input("gates", *shape)
    names = [{site: f"b{i}_gate_{site}" for site in widths} for i in range(config.blocks)]
    sizes = graph.integers(*list(widths.values()) * config.blocks)
    graph.nodes("Split", [gates, sizes], [name for block in names for name in block.values()], axis=1)
    return names


def _gated(graph: _Graph, value: str, gates: dict[str, str], site: str, name: str) -> str:
    return graph.node("Mul", [value, gates[site]], name) if site in gates else value


def stream_graph(network: InferenceConvFSENet, frames: int = 1, streams: int = 1) -> bytes:
    """Some frames of a stream, or a frame of each of some streams: features (rows, bins) to mask (rows, bins).

    Block i gives the depthwise inputs as ``b{i}_u`` (rows, H) and reads those of earlier calls as ``b{i}_tap{k}``,
    oldest tap first: (rows, H), or only as many rows as the tap lies back in the stream. The caller keeps them, so the
    graph moves no history. A gated network also reads ``gates``, all blocks' gates as 0 and 1 side by side.

    Raises:
        ValueError: some frames of some streams.
    """
    if frames > 1 and streams > 1:
        raise ValueError(f"stream_graph: frames or streams must be 1 (got {frames} and {streams})")
    graph, config, rows = _Graph(), network.config, frames * streams
    x = graph.gemm(graph.input("features", rows, config.bins), network.front_weight, network.front_bias, "front")
    x = graph.node("Relu", [x], "front_active")
    graph.output("mask", rows, config.bins)
    gates = _split_gates(graph, network, rows, None)
    for i, block in enumerate(network.blocks):
        b: Any = block
        active = f"b{i}_in_active" if "hidden" in gates[i] else f"b{i}_u"
        u = graph.activation(graph.gemm(x, b.w_in, b.b_in, f"b{i}_in"), b.slope_in, active)
        u = graph.output(_gated(graph, u, gates[i], "hidden", f"b{i}_u"), rows, config.hidden)
        older = []
        for k in range(config.kernel_size - 1):
            lag = (config.kernel_size - 1 - k) * int(b.dilation)
            older.append(graph.input(f"b{i}_tap{k}", min(lag, frames) * streams, config.hidden))
            if lag < frames:
                bounds = [graph.integers(0), graph.integers(frames - lag), graph.integers(0)]
                own = graph.node("Slice", [u, *bounds], f"b{i}_own{k}")
                older[k] = graph.node("Concat", [older[k], own], f"b{i}_lagged{k}", axis=0)
        total = ""
        for k, tap in enumerate((*older, u)):
            taps = graph.constant(f"b{i}_dw{k}", b.w_dw[None, :, k])
            part = graph.node("Mul", [tap, taps], f"b{i}_part{k}")
            total = part if not total else graph.node("Add", [total, part], f"b{i}_sum{k}")
        total = graph.node("Add", [total, graph.constant(f"b{i}_dw_bias", b.b_dw[None])], f"b{i}_dw")
        z = _gated(graph, graph.activation(total, b.slope_dw, f"b{i}_dw_active"), gates[i], "hidden", f"b{i}_z")
        y = graph.gemm(z, b.w_out, b.b_out, f"b{i}_out")
        y = _gated(graph, _gated(graph, y, gates[i], "out", f"b{i}_out_gated"), gates[i], "any", f"b{i}_out_any")
        x = graph.node("Add", [x, y], f"b{i}_y")
    graph.node("Sigmoid", [graph.gemm(x, network.back_weight, network.back_bias, "back")], "mask")
    return graph.bytes()


def stream_graph_with_histories(network: InferenceConvFSENet) -> bytes:
    """One frame of a static network in the form an exporter gives.

    Histories ``b{i}_history`` (1, H, (K - 1) * d) go in, ``b{i}_next`` come out, and the depthwise layer is a
    convolution over them.
    """
    graph, config = _Graph(), network.config
    x = graph.gemm(graph.input("features", 1, config.bins), network.front_weight, network.front_bias, "front")
    x = graph.node("Relu", [x], "front_active")
    graph.output("mask", 1, config.bins)
    for i, block in enumerate(network.blocks):
        b: Any = block
        reach = (config.kernel_size - 1) * int(b.dilation)
        u = graph.activation(graph.gemm(x, b.w_in, b.b_in, f"b{i}_in"), b.slope_in, f"b{i}_u")
        u = graph.node("Reshape", [u, graph.integers(1, config.hidden, 1)], f"b{i}_column")
        history = graph.input(f"b{i}_history", 1, config.hidden, reach)
        window = graph.node("Concat", [history, u], f"b{i}_window", axis=2)
        bounds = [graph.integers(1), graph.integers(_END), graph.integers(2)]
        graph.node("Slice", [window, *bounds], graph.output(f"b{i}_next", 1, config.hidden, reach))
        constants = [graph.constant(f"b{i}_dw_weight", b.w_dw[:, None]), graph.constant(f"b{i}_dw_bias", b.b_dw)]
        attributes = {"group": config.hidden, "dilations": [int(b.dilation)], "kernel_shape": [config.kernel_size]}
        z = graph.node("Conv", [window, *constants], f"b{i}_dw", **attributes)
        z = graph.node("Reshape", [z, graph.integers(1, config.hidden)], f"b{i}_row")
        z = graph.activation(z, b.slope_dw, f"b{i}_z")
        x = graph.node("Add", [x, graph.gemm(z, b.w_out, b.b_out, f"b{i}_out")], f"b{i}_y")
    graph.node("Sigmoid", [graph.gemm(x, network.back_weight, network.back_bias, "back")], "mask")
    return graph.bytes()


def offline_graph(network: InferenceConvFSENet, batch: int, frames: int) -> bytes:
    """Whole clips: features (batch, bins, frames) to mask of the same shape; ``gates`` as in :func:`stream_graph`."""
    graph, config = _Graph(), network.config
    shape = (batch, config.bins, frames)
    x = graph.pointwise(graph.input("features", *shape), network.front_weight, network.front_bias, "front")
    x = graph.node("Relu", [x], "front_active")
    graph.output("mask", *shape)
    gates = _split_gates(graph, network, batch, frames)
    for i, block in enumerate(network.blocks):
        b: Any = block
        u = graph.activation(graph.pointwise(x, b.w_in, b.b_in, f"b{i}_in"), b.slope_in, f"b{i}_in_active")
        u = _gated(graph, u, gates[i], "hidden", f"b{i}_u")
        reach = (config.kernel_size - 1) * int(b.dilation)
        attributes = {"group": config.hidden, "dilations": [int(b.dilation)], "kernel_shape": [config.kernel_size]}
        attributes["pads"] = [reach, 0] if config.causal else [reach // 2, reach // 2]
        constants = [graph.constant(f"b{i}_dw_weight", b.w_dw[:, None]), graph.constant(f"b{i}_dw_bias", b.b_dw)]
        z = graph.node("Conv", [u, *constants], f"b{i}_dw", **attributes)
        z = _gated(graph, graph.activation(z, b.slope_dw, f"b{i}_dw_active"), gates[i], "hidden", f"b{i}_z")
        y = graph.pointwise(z, b.w_out, b.b_out, f"b{i}_out")
        y = _gated(graph, _gated(graph, y, gates[i], "out", f"b{i}_out_gated"), gates[i], "any", f"b{i}_out_any")
        x = graph.node("Add", [x, y], f"b{i}_y")
    back = graph.pointwise(x, network.back_weight, network.back_bias, "back")
    graph.node("Sigmoid", [back], "mask")
    return graph.bytes()
