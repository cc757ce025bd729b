"""The engines that benchmarks compare, by name."""

from __future__ import annotations

from typing import Any

from dyncp_kernels.bench.engines.interface import Engine, Run

__all__ = ["ENGINES", "Engine", "Run"]


def _lazily(module: str, name: str) -> Any:
    """The function of that name, imported when it is called: some engines' packages may be missing."""

    def make(*arguments: Any) -> Any:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{module}"), name)(*arguments)

    return make


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            "dyncp static",
            _lazily("dyncp", "Stream"),
            _lazily("dyncp", "Offline"),
            _lazily("dyncp", "Together"),
            _lazily("dyncp", "Together"),
        ),
        Engine(
            "dyncp gated",
            _lazily("dyncp", "Stream"),
            _lazily("dyncp", "Offline"),
            _lazily("dyncp", "Together"),
            _lazily("dyncp", "Together"),
            gated=True,
        ),
        Engine(
            "PyTorch eager",
            _lazily("pytorch", "Stream"),
            _lazily("pytorch", "Offline"),
            streams=_lazily("pytorch", "Stream"),
        ),
        Engine(
            "torch.compile",
            _lazily("pytorch", "compiled_stream"),
            _lazily("pytorch", "compiled_offline"),
            slow_start=True,
        ),
        Engine("AOTInductor", _lazily("pytorch", "ahead_of_time_stream"), slow_start=True),
        Engine(
            "ONNX Runtime",
            _lazily("onnx_runtime", "stream"),
            _lazily("onnx_runtime", "Offline"),
            _lazily("onnx_runtime", "chunks"),
            _lazily("onnx_runtime", "stream"),
            _lazily("onnx_runtime", "reduced"),
            modules=("onnx", "onnxruntime"),
        ),
        Engine("ONNX Runtime, histories", _lazily("onnx_runtime", "HistoryStream"), modules=("onnx", "onnxruntime")),
        Engine(
            "OpenVINO",
            _lazily("open_vino", "stream"),
            _lazily("open_vino", "Offline"),
            _lazily("open_vino", "chunks"),
            _lazily("open_vino", "stream"),
            _lazily("open_vino", "reduced"),
            modules=("onnx", "openvino"),
        ),
        Engine(
            "masked dense, ONNX Runtime",
            _lazily("onnx_runtime", "stream"),
            _lazily("onnx_runtime", "Offline"),
            gated=True,
            modules=("onnx", "onnxruntime"),
        ),
        Engine(
            "masked dense, OpenVINO",
            _lazily("open_vino", "stream"),
            _lazily("open_vino", "Offline"),
            gated=True,
            modules=("onnx", "openvino"),
        ),
    )
}
"""Names as in the results. ``ONNX Runtime`` streams a graph that leaves the histories where they are; ``ONNX Runtime,
histories`` the form an exporter gives. The masked dense engines compute everything and multiply by the gates; their
gate networks are left out, in their favour."""
