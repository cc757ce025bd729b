"""ONNX Runtime on the CPU: buffers bound once, frames and gates copied into them."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._optional import require
from dyncp_kernels.bench.engines.graph_runs import GraphChunks, GraphStream
from dyncp_kernels.bench.engines.interface import Run, flat_gates
from dyncp_kernels.bench.engines.tap_rings import frame_rows
from dyncp_kernels.bench.graphs import offline_graph, stream_graph, stream_graph_with_histories
from dyncp_kernels.bench.quantised_graphs import quantised_at_run_time
from dyncp_kernels.bench.workload import Workload

__all__ = ["HistoryStream", "Offline", "chunks", "reduced", "stream"]

Array = NDArray[np.float32]


class _Session:
    def __init__(self, model: bytes, threads: int):
        self._runtime: Any = require("onnxruntime", "bench")
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def binding(self, arrays: dict[str, Array]) -> Any:
        """A binding of every input and output to the array of its name; the arrays are used in place."""
        binding = self.session.io_binding()
        for item in self.session.get_inputs():
            binding.bind_ortvalue_input(item.name, self._value(arrays[item.name]))
        for item in self.session.get_outputs():
            binding.bind_ortvalue_output(item.name, self._value(arrays[item.name]))
        return binding

    def prepare(self, arrays: dict[str, Array]) -> Callable[[], object]:
        """What runs the graph on the arrays of these names, in place."""
        return partial(self.session.run_with_iobinding, self.binding(arrays))

    def _value(self, array: Array) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array)


def stream(work: Workload, threads: int) -> Run:
    """One frame of each stream a call."""
    return GraphStream(work, _Session(stream_graph(work.network, streams=work.batch), threads).prepare)


def chunks(work: Workload, threads: int, frames: int) -> Run:
    """Some frames a call, without gates."""
    return GraphChunks(work, frames, _Session(stream_graph(work.network, frames), threads).prepare)


def _int8_stream(work: Workload, threads: int) -> Run:
    return GraphStream(work, _Session(quantised_at_run_time(stream_graph(work.network)), threads).prepare)


def reduced() -> dict[str, Callable[[Workload, int], Run]]:
    """One frame a call with narrower weights, by dtype."""
    return {"int8": _int8_stream}


class HistoryStream(Run):
    """One frame a call, histories as tensors in and out; two sets of buffers take turns, so nothing is copied back."""

    def __init__(self, work: Workload, threads: int):
        config = work.config
        self._frames = frame_rows(work)
        self._input = np.zeros((1, config.bins), np.float32)
        self._mask = np.zeros((1, config.bins), np.float32)
        reaches = [(config.kernel_size - 1) * d for d in config.dilations] * config.stacks
        self._histories = [[np.zeros((1, config.hidden, reach), np.float32) for reach in reaches] for _ in range(2)]
        session = _Session(stream_graph_with_histories(work.network), threads)
        self._bindings = []
        for turn in range(2):
            arrays: dict[str, Array] = {"features": self._input, "mask": self._mask}
            for i, (old, new) in enumerate(zip(self._histories[turn], self._histories[1 - turn])):
                arrays |= {f"b{i}_history": old, f"b{i}_next": new}
            self._bindings.append(session.binding(arrays))
        self._run = session.session.run_with_iobinding
        self.reset()

    def reset(self) -> None:
        for array in self._histories[0]:
            array.fill(0)
        self._turn = 0

    def __call__(self, frame: int) -> None:
        np.copyto(self._input, self._frames[frame])
        self._run(self._bindings[self._turn])
        self._turn = 1 - self._turn

    def mask(self) -> Array:
        return self._mask[0].copy()


class Offline(Run):
    """Whole clips a call, input, gates and output bound once."""

    def __init__(self, work: Workload, threads: int):
        session = _Session(offline_graph(work.network, work.batch, work.frames), threads)
        self._mask = np.zeros(tuple(work.features.shape), np.float32)
        arrays = {"features": work.features.contiguous().numpy(), "mask": self._mask}
        if work.source != "none":
            arrays["gates"] = np.ascontiguousarray(flat_gates(work.gates))
        self._binding = session.binding(arrays)
        self._run = session.session.run_with_iobinding

    def __call__(self, frame: int) -> None:
        self._run(self._binding)

    def mask(self) -> Array:
        return self._mask.copy()
