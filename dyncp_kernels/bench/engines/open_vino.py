"""OpenVINO on the CPU in float32: infer requests made once, their tensors shared with numpy arrays."""

# ruff: noqa: D102 (the methods are described in Run)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._optional import require
from dyncp_kernels.bench.engines.chunks import GraphChunks
from dyncp_kernels.bench.engines.interface import Run, flat_gates
from dyncp_kernels.bench.engines.tap_rings import TapRings, frame_rows, gate_rows
from dyncp_kernels.bench.graphs import offline_graph, stream_graph
from dyncp_kernels.bench.workload import Workload

__all__ = ["Offline", "Stream", "chunks"]

Array = NDArray[np.float32]


class _Compiled:
    def __init__(self, model: bytes, threads: int):
        self._openvino: Any = require("openvino", "bench")
        core = self._openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self._model = core.compile_model(core.read_model(model), "CPU", settings)

    def request(self, arrays: dict[str, Array]) -> Any:
        """A request whose tensors are the arrays of their names; the caller keeps the arrays alive."""
        request = self._model.create_infer_request()
        for port in (*self._model.inputs, *self._model.outputs):
            name = next(name for name in port.names if name in arrays)
            request.set_tensor(port, self._openvino.Tensor(arrays[name], shared_memory=True))
        return request


class Stream(Run):
    """One frame of each stream a call; one request for each position of the rings of histories, made beforehand."""

    def __init__(self, work: Workload, threads: int):
        config = work.config
        self._frames = frame_rows(work)
        self._gates = gate_rows(work)
        self._input = np.zeros_like(self._frames[0])
        self._mask = np.zeros_like(self._frames[0])
        self._rings = TapRings(config, work.batch)
        compiled = _Compiled(stream_graph(work.network, streams=work.batch), threads)
        fixed = {"features": self._input, "mask": self._mask}
        if self._gates is not None:
            self._gate_input = np.zeros_like(self._gates[0])
            fixed["gates"] = self._gate_input
        self._requests = [compiled.request({**fixed, **arrays}) for arrays in self._rings.positions]
        self.reset()

    def reset(self) -> None:
        self._rings.clear()
        self._position = 0

    def __call__(self, frame: int) -> None:
        np.copyto(self._input, self._frames[frame])
        if self._gates is not None:
            np.copyto(self._gate_input, self._gates[frame])
        # Cheaper than infer(), which wraps the outputs on every call.
        request = self._requests[self._position]
        request.start_async()
        request.wait()
        self._position = (self._position + 1) % len(self._requests)

    def mask(self) -> Array:
        return self._mask.copy()


def chunks(work: Workload, threads: int, frames: int) -> Run:
    """Some frames a call, without gates."""
    compiled = _Compiled(stream_graph(work.network, frames), threads)

    def prepare(arrays: dict[str, Array]) -> Callable[[], None]:
        request = compiled.request(arrays)

        def run() -> None:
            request.start_async()
            request.wait()

        return run

    return GraphChunks(work, frames, prepare)


class Offline(Run):
    """Whole clips a call."""

    def __init__(self, work: Workload, threads: int):
        compiled = _Compiled(offline_graph(work.network, work.batch, work.frames), threads)
        self._mask = np.zeros(tuple(work.features.shape), np.float32)
        self._arrays = {"features": work.features.contiguous().numpy(), "mask": self._mask}
        if work.source != "none":
            self._arrays["gates"] = np.ascontiguousarray(flat_gates(work.gates))
        self._request = compiled.request(self._arrays)

    def __call__(self, frame: int) -> None:
        self._request.start_async()
        self._request.wait()

    def mask(self) -> Array:
        return self._mask.copy()
