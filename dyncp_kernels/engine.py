"""The streaming engine: the whole network, or samples in to samples out, in one call for a frame or for many of them.

Frames that come in one call share the weights that are read, be they of one stream or of several.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from dyncp_kernels import _extension
from dyncp_kernels._atomic import replacing
from dyncp_kernels.nn import BlockGates, ChannelGate, ConvFSENet, InferenceConvFSENet, StaticGate, shift_for_budget
from dyncp_kernels.nn.config import ConvFSENetConfig

__all__ = ["PRECISIONS", "PackedModel", "StreamEngine", "folded_bytes", "save_folded"]

PRECISIONS = ("float32", "int24", "float16", "bfloat16", "int8")

Streams: TypeAlias = Sequence[int] | Tensor

_FORMAT = "dyncp-folded-1"

_step = _extension.frame_call("dyncp_call_step")
_enhance = _extension.frame_call("dyncp_call_enhance")
_enhance_finite = _extension.frame_call("dyncp_call_enhance_finite")


def _numbers(only: Streams | None) -> Tensor | None:
    return torch.tensor(list(only), dtype=torch.int64) if isinstance(only, Sequence) else only


def _folded(model: ConvFSENet | InferenceConvFSENet) -> InferenceConvFSENet:
    return model.fold() if isinstance(model, ConvFSENet) else model


def _tensors(model: InferenceConvFSENet) -> dict[str, Tensor]:
    tensors = {
        "front.weight": model.front_weight,
        "front.bias": model.front_bias,
        "back.weight": model.back_weight,
        "back.bias": model.back_bias,
    }
    names = ("w_in", "b_in", "w_dw", "b_dw", "w_out", "b_out", "slope_in", "slope_dw")
    for index, block in enumerate(model.blocks):
        found: dict[str, Any] = {name: getattr(block, name) for name in names if getattr(block, name) is not None}
        gate = block.gate
        if isinstance(gate, ChannelGate):
            for part in ("reduce", "expand"):
                linear = getattr(gate, part)
                found |= {f"gate.{part}.weight": linear.weight, f"gate.{part}.bias": linear.bias}
        elif isinstance(gate, StaticGate):
            found["gate.score"] = gate.score
        tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in found.items()}
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}


def folded_bytes(model: ConvFSENet | InferenceConvFSENet) -> bytes:
    """The folded network as the bytes of a safetensors file, float32, with its config in the file's metadata.

    Raises:
        ValueError: the network looks ahead, so it cannot stream.
    """
    folded = _folded(model)
    config: ConvFSENetConfig = folded.config
    if not config.streamable:
        raise ValueError(
            "folded_bytes: streaming needs a causal network with gates per frame or static "
            f"(got causal={config.causal}, gate_per={config.gate_per!r})"
        )
    tensors = _tensors(folded)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT,
            "config": json.dumps(config.to_dict()),
            "calibration": json.dumps(folded.calibration),
        }
    }
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def save_folded(model: ConvFSENet | InferenceConvFSENet, path: str | os.PathLike[str]) -> Path:
    """Write the folded network for the C interface (``dyncp_model_load``); the file appears whole or not at all.

    Args:
        model: a streamable network; a trained one is folded.
        path: of the file, ``.safetensors`` by convention.

    Raises:
        ValueError: the network looks ahead, so it cannot stream.
    """
    path = Path(path)
    content = folded_bytes(model)
    with replacing(path) as part:
        part.write_bytes(content)
    return path


class PackedModel:
    """Weights in the order in which the engine reads them; only read, so any number of engines and threads share it.

    Args:
        model: a streamable network in either form.
        precision: of the weights of the 1x1 convolutions: ``"float32"``, ``"int24"``, ``"float16"``, ``"bfloat16"`` or
            ``"int8"``; integers have one scale per output channel, and those of 24 bits round no worse than float32
            does in the largest weight of a channel. Sums, biases, the depthwise convolution and the gates stay as exact
            as in float32, but that weights of 8 bits are multiplied with activations of 16 where the processor
            multiplies bytes.

    Attributes:
        tensor: the packed weights, 1-D uint8.
        config: geometry of the network.
        calibration: as in :class:`dyncp_kernels.nn.ConvFSENet`.
        precision: as given.

    Raises:
        ValueError: the network looks ahead, or the precision is unknown.
        RuntimeError: the native extension is missing.
    """

    def __init__(self, model: ConvFSENet | InferenceConvFSENet, precision: str = "float32"):
        if not _extension.extension_loaded():
            raise RuntimeError("PackedModel: the native extension must be built (got none)")
        if precision not in PRECISIONS:
            raise ValueError(f"PackedModel: precision must be one of {list(PRECISIONS)} (got {precision!r})")
        folded = _folded(model)
        content = torch.frombuffer(bytearray(folded_bytes(folded)), dtype=torch.uint8)
        self.tensor: Tensor = torch.ops.dyncp.stream_pack(content, precision)
        self.config: ConvFSENetConfig = folded.config
        self.calibration = list(folded.calibration)
        self.precision = precision


class StreamEngine:
    """Streams through a packed model: features to masks, or samples to enhanced samples, with no allocation inside.

    The same numbers as ``InferenceConvFSENet.forward`` to about 1e-6 in float32. Engines may share a model across
    threads; one engine must not be used from two threads at a time, nor mix :meth:`step` and :meth:`push_hop` within a
    stream.

    Frames of one call, one behind the other or of several streams, give the same masks as each of them alone, to the
    bit, in less time: up to eight share the weights that are read. There a row of weights is not read when none of the
    frames that share it keeps its channel. Many streams are also shared among torch's threads.

    Args:
        model: a network in either form, or a :class:`PackedModel` to share.
        precision: as in :class:`PackedModel`; ignored for one.
        budget: share of channels to keep, 0 to 1, for a model with a calibration; None for the trained operating point.
        shift: added to the gate scores instead, when no budget is given.
        hidden_crossover, out_crossover: density of kept channels above which the weights of a site are read whole and
            pruned results dropped, rather than only kept rows read; None for the values measured on this machine. The
            second one has no effect where hidden channels are gated, too.
        streams: number of streams S, each with a signal and a state of its own; then everything that goes in and comes
            out has S in front. None for one stream, without that dimension.

    With streams, methods take ``only``: distinct numbers of the streams that a call is for, a sequence or a 1-D int64
    tensor. What goes in and comes out then has that many in front, in that order; the others stay as they are. So
    callers may come, go and be late, and those that are due at the same time share the weights all the same.

    Attributes:
        shift: may be changed between calls.
        streams: as given.

    Raises:
        ValueError: ``streams`` is below 1; as :class:`PackedModel` and :func:`dyncp_kernels.nn.shift_for_budget` say.
        RuntimeError: the native extension is missing.
    """

    def __init__(
        self,
        model: ConvFSENet | InferenceConvFSENet | PackedModel,
        precision: str = "float32",
        *,
        budget: float | None = None,
        shift: float = 0.0,
        hidden_crossover: float | None = None,
        out_crossover: float | None = None,
        streams: int | None = None,
    ):
        if streams is not None and streams < 1:
            raise ValueError(f"StreamEngine: streams must be at least 1 (got {streams})")
        self.model = model if isinstance(model, PackedModel) else PackedModel(model, precision)
        self.config = self.model.config
        self.shift = shift if budget is None else shift_for_budget(self.model.calibration, budget)
        self.streams = streams
        self._packed = self.model.tensor
        self._state: Tensor = torch.ops.dyncp.stream_state(
            self._packed,
            -1.0 if hidden_crossover is None else hidden_crossover,
            -1.0 if out_crossover is None else out_crossover,
            streams,
        )
        self._out_gates = self.config.channels * self.config.gates_output_channels
        self._hidden_gates = self.config.hidden * self.config.gates_hidden_channels

    @property
    def latency(self) -> int:
        """Samples by which :meth:`push_hop` lags behind its input: n_fft - hop."""
        return self.config.n_fft - self.config.hop

    @property
    def info(self) -> dict[str, Any]:
        """Instruction set, precision, sizes in bytes, number of streams, frames of the first, crossovers in use."""
        return json.loads(torch.ops.dyncp.stream_info(self._packed, self._state))

    def reset(self, *, only: Streams | None = None) -> None:
        """Forget the signal so far, as if newly made.

        Raises:
            RuntimeError: there are no such streams, or one comes twice.
        """
        torch.ops.dyncp.stream_reset_(self._packed, self._state, _numbers(only))

    def step(self, features: Tensor, out: Tensor | None = None, *, only: Streams | None = None) -> Tensor:
        """Masks in (0, 1) for a frame (bins,) or a chunk of frames (T, bins) of features, float32, same shape.

        Args:
            features: compressed magnitudes, contiguous, on the CPU; (S, bins) or (S, T, bins) with S streams.
            out: where to write the masks; saves the one allocation.
            only: see the class.

        Raises:
            RuntimeError: wrong shape, dtype or device; streams that are not there, or one twice.
        """
        if _step is not None and only is None and not is_dynamo_compiling():
            mask = _step(self._packed, self._state, features, out, self.shift)
            if mask is not None:
                return mask
        if out is None:
            return torch.ops.dyncp.stream_step.default(self._packed, self._state, features, self.shift, _numbers(only))
        # The overload by name: a look-up of it would cost every frame a microsecond.
        torch.ops.dyncp.stream_step_out.default(
            self._packed, self._state, features, self.shift, out, None, _numbers(only)
        )
        return out

    def step_with_gates(self, features: Tensor, *, only: Streams | None = None) -> tuple[Tensor, list[BlockGates]]:
        """As :meth:`step` for (T, bins), with the boolean gates of each block: (T, hidden) and (T, channels) or None.

        With S streams for (S, T, bins), with gates (S, T, hidden) and (S, T, channels).

        Raises:
            RuntimeError: as :meth:`step` says.
        """
        mask = torch.empty(features.shape, dtype=features.dtype)
        streams = _numbers(only)
        gates = self._empty_gates(features.shape[-2] if features.ndim > 1 else 1, streams)
        torch.ops.dyncp.stream_step_out(self._packed, self._state, features, self.shift, mask, gates, streams)
        return mask, self._split(gates)

    def push_hop(self, samples: Tensor | np.ndarray, out: Tensor | None = None, *, only: Streams | None = None) -> Any:
        """Enhance one hop, or any whole number of hops, of samples (n * hop,) or (S, n * hop) at the model's rate.

        Args:
            samples: float32, full scale 1.0, contiguous; torch on the CPU, or numpy.
            out: tensor to write the result to; may be ``samples`` itself.
            only: see the class.

        Returns:
            As many samples of the same kind, ``latency`` samples behind the input.

        Raises:
            RuntimeError: wrong shape, dtype or device; streams that are not there, or one twice; the model's n_fft is
                no power of two.
        """
        if isinstance(samples, np.ndarray):
            given = torch.from_numpy(np.require(samples, requirements=["C", "W"]))
            return self.push_hop(given, out, only=only).numpy()
        if _enhance is not None and only is None and not is_dynamo_compiling():
            enhanced = _enhance(self._packed, self._state, samples, out, self.shift)
            if enhanced is not None:
                return enhanced
        if out is None:
            return torch.ops.dyncp.stream_enhance.default(
                self._packed, self._state, samples, self.shift, _numbers(only)
            )
        torch.ops.dyncp.stream_enhance_out.default(
            self._packed, self._state, samples, self.shift, out, None, _numbers(only)
        )
        return out

    def push_finite_hops(self, samples: Tensor | np.ndarray) -> Any:
        """As :meth:`push_hop` for samples that nobody has checked yet; with ``streams=1`` they may be (n * hop,), too.

        Returns:
            As many samples of the same kind and shape; None, with nothing done, when the samples are not float32
            numbers in range in one piece on the CPU of whole hops, or the package was built without Python's headers.
        """
        if _enhance_finite is None or is_dynamo_compiling():
            return None
        if isinstance(samples, np.ndarray):
            if samples.dtype != np.float32 or not samples.flags.c_contiguous:
                return None
            given = torch.from_numpy(samples if samples.flags.writeable else samples.copy())
            enhanced = _enhance_finite(self._packed, self._state, given, None, self.shift)
            return None if enhanced is None else enhanced.numpy()
        return _enhance_finite(self._packed, self._state, samples, None, self.shift)

    def push_hop_with_gates(self, samples: Tensor, *, only: Streams | None = None) -> tuple[Tensor, list[BlockGates]]:
        """As :meth:`push_hop`, with the boolean gates of each block and hop as in :meth:`step_with_gates`.

        Raises:
            RuntimeError: as :meth:`push_hop` says.
        """
        enhanced = torch.empty(samples.shape, dtype=samples.dtype)
        streams = _numbers(only)
        gates = self._empty_gates(samples.shape[-1] // self.config.hop, streams)
        torch.ops.dyncp.stream_enhance_out(self._packed, self._state, samples, self.shift, enhanced, gates, streams)
        return enhanced, self._split(gates)

    def _empty_gates(self, frames: int, only: Tensor | None) -> Tensor:
        shape = (frames, self.config.blocks, self._out_gates + self._hidden_gates)
        streams = self.streams if only is None else only.numel()
        return torch.empty(shape if streams is None else (streams, *shape), dtype=torch.bool)

    def _split(self, gates: Tensor) -> list[BlockGates]:
        return [
            BlockGates(
                hidden=block[..., self._out_gates :] if self._hidden_gates else None,
                out=block[..., : self._out_gates] if self._out_gates else None,
            )
            for block in gates.unbind(-2)
        ]


def _register_fakes() -> None:
    def pack(folded: Tensor, precision: str) -> Tensor:
        # The size follows from the content, which a fake tensor does not have.
        return folded.new_empty(torch.library.get_ctx().new_dynamic_size())

    def state(
        packed: Tensor, hidden_crossover: float = -1.0, out_crossover: float = -1.0, streams: int | None = None
    ) -> Tensor:
        size = torch.library.get_ctx().new_dynamic_size()
        return packed.new_empty(size if streams is None else (streams, size))

    def same_as_third(
        packed: Tensor, state: Tensor, values: Tensor, shift: float = 0.0, only: Tensor | None = None
    ) -> Tensor:
        return torch.empty_like(values)

    def nothing(*args: Any, **kwargs: Any) -> None:
        return None

    def info(packed: Tensor, state: Tensor) -> str:
        return "{}"

    register = torch.library.register_fake
    register("dyncp::stream_pack", pack)
    register("dyncp::stream_state", state)
    for name in ("stream_step", "stream_enhance"):
        register(f"dyncp::{name}", same_as_third)
    for name in ("stream_reset_", "stream_step_out", "stream_enhance_out"):
        register(f"dyncp::{name}", nothing)
    register("dyncp::stream_info", info)


if _extension.extension_loaded():
    _register_fakes()
