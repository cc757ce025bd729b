"""OpenVINO on the CPU: infer requests made once, their tensors shared with numpy arrays."""

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
from dyncp_kernels.bench.graphs import offline_graph, stream_graph
from dyncp_kernels.bench.quantised_graphs import quantised_by_calibration
from dyncp_kernels.bench.workload import Workload

__all__ = ["Offline", "chunks", "reduced", "stream"]

_CALIBRATION_FRAMES = 100

Array = NDArray[np.float32]


class _Compiled:
    def __init__(self, model: bytes, threads: int, precision: str = "f32"):
        self._openvino: Any = require("openvino", "bench")
        core = self._openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self._model = core.compile_model(core.read_model(model), "CPU", settings)

    def prepare(self, arrays: dict[str, Array]) -> Callable[[], object]:
        """What runs the graph on the arrays of these names, in place; the caller keeps them alive."""
        request = self._model.create_infer_request()
        for port in (*self._model.inputs, *self._model.outputs):
            name = next(name for name in port.names if name in arrays)
            request.set_tensor(port, self._openvino.Tensor(arrays[name], shared_memory=True))
        # Not start_async(), which hands every call to another thread, half of a frame's time.
        return partial(request.infer, share_outputs=True)


def stream(work: Workload, threads: int) -> Run:
    """One frame of each stream a call."""
    return GraphStream(work, _Compiled(stream_graph(work.network, streams=work.batch), threads).prepare)


def chunks(work: Workload, threads: int, frames: int) -> Run:
    """Some frames a call, without gates."""
    return GraphChunks(work, frames, _Compiled(stream_graph(work.network, frames), threads).prepare)


def _bfloat16_stream(work: Workload, threads: int) -> Run:
    return GraphStream(work, _Compiled(stream_graph(work.network), threads, "bf16").prepare)


def _int8_stream(work: Workload, threads: int) -> Run:
    graph = stream_graph(work.network)
    prepare = _Compiled(graph, threads).prepare
    seen = []

    def prepare_recorded(arrays: dict[str, Array]) -> Callable[[], object]:
        run = prepare(arrays)

        def record_and_run() -> None:
            seen.append({name: array.copy() for name, array in arrays.items()})
            run()

        return record_and_run

    recorded = GraphStream(work, prepare_recorded)
    for frame in range(min(work.frames, _CALIBRATION_FRAMES)):
        recorded(frame)
    return GraphStream(work, _Compiled(quantised_by_calibration(graph, seen), threads).prepare)


def reduced() -> dict[str, Callable[[Workload, int], Run]]:
    """One frame a call with narrower weights, by dtype; bfloat16 only where the processor has instructions for it."""
    capabilities = require("openvino", "bench").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    makers: dict[str, Callable[[Workload, int], Run]] = {"int8": _int8_stream}
    if "BF16" in capabilities:
        makers["bfloat16"] = _bfloat16_stream
    return makers


class Offline(Run):
    """Whole clips a call."""

    def __init__(self, work: Workload, threads: int):
        compiled = _Compiled(offline_graph(work.network, work.batch, work.frames), threads)
        self._mask = np.zeros(tuple(work.features.shape), np.float32)
        self._arrays = {"features": work.features.contiguous().numpy(), "mask": self._mask}
        if work.source != "none":
            self._arrays["gates"] = np.ascontiguousarray(flat_gates(work.gates))
        self._run = compiled.prepare(self._arrays)

    def __call__(self, frame: int) -> None:
        self._run()

    def mask(self) -> Array:
        return self._mask.copy()
