"""ONNX graphs of ``graphs.py`` with matrix products of 8-bit integers, as ONNX Runtime's own tools make them."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._optional import require

__all__ = ["quantised_at_run_time", "quantised_by_calibration"]

Array = NDArray[np.float32]


def quantised_at_run_time(model: bytes) -> bytes:
    """Signed weights with one scale a matrix; each product finds the range of its input anew.

    The fastest form for ONNX Runtime: scales for each output or ranges from calibration cost more time than they save.
    """
    tools = require("onnxruntime.quantization", "bench")
    with _quantising(model) as (graph, path):
        tools.quantize_dynamic(graph, path, weight_type=tools.QuantType.QInt8)
        return path.read_bytes()


def quantised_by_calibration(model: bytes, inputs: Sequence[dict[str, Array]]) -> bytes:
    """Signed weights with a scale for each output, signed inputs with ranges from calibration: OpenVINO's fastest form.

    Args:
        model: the float32 graph.
        inputs: of the graph, by name, for each run of the calibration; other arrays may lie among them.
    """
    tools = require("onnxruntime.quantization", "bench")

    with _quantising(model) as (graph, path):
        names = [item.name for item in graph.graph.input]
        left = iter([{name: arrays[name] for name in names} for arrays in inputs])

        class Reader(tools.CalibrationDataReader):  # type: ignore[name-defined]
            def get_next(self) -> dict[str, Array] | None:
                return next(left, None)

        tools.quantize_static(
            graph,
            path,
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=["Gemm"],
            # What comes out of a product goes on in float32.
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"], "ActivationSymmetric": True},
        )
        return path.read_bytes()


@contextmanager
def _quantising(model: bytes) -> Iterator[tuple[Any, Path]]:
    """The graph as the tools want it and a file for their result; they advise steps that folded graphs don't need."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield require("onnx", "bench").load_from_string(model), Path(folder) / "quantised.onnx"
    finally:
        root.setLevel(level)
