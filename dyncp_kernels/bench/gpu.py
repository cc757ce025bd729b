"""Times of the block on a GPU: ``python -m dyncp_kernels.bench.gpu``.

Every measurement is checked against a float32 product of dense weights and masks first; a row whose output is wrong
carries no time.  Beside each stands its roofline: the larger of the bytes it must move over the copy bandwidth and of
the operations it must do over the rate of a large product, both measured on the same device just before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import dyncp_kernels.ops as ops
from dyncp_kernels.bench.gpu_report import FORMAT, table_of
from dyncp_kernels.ops import backends

__all__ = ["GpuRow", "main", "run"]

WIDTHS = ((128, 256), (256, 512), (512, 1024), (512, 2048))
SIZES = ((1, 500), (32, 250), (256, 250))
DENSITIES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
DEVICE = "cuda"
STREAMS = (1, 16, 256, 4096)
TAPS = 3
DILATION = 2
TOLERANCE = {"float32": 1e-5, "tf32": 3e-3, "bfloat16": 2e-2}


@dataclass(frozen=True)
class GpuRow:
    """One way to run one block.

    Attributes:
        op: ``gated_conv`` or ``gated_conv_step``.
        provider: ``eager``, ``compile``, ``masked dense``, ``triton`` or ``cuda``.
        launch: ``call`` from Python, or ``graph`` replay.
        dtype: ``float32`` (IEEE products), ``tf32`` or ``bfloat16``.
        batch: items, or streams of a step.
        frames: frames of an item; 1 for a step.
        channels: of x and y.
        hidden: hidden channels.
        gates: ``none``, ``utterance`` (random, constant over time), ``random`` (for each frame) or ``recorded``.
        density: share of open (frame, channel) pairs of the masks used.
        p20_us: 20th percentile of the time of one call, microseconds; None when the output was wrong.
        p50_us: median.
        p80_us: 80th percentile.
        macs: multiplications that the masks leave.
        bytes: bytes that have to move at least: x, y, gates, weights of channels that are open somewhere.
        roofline_us: the time that these operations or bytes take at the measured ceilings.
        error: relative error of the output against the float32 reference.
    """

    op: str
    provider: str
    launch: str
    dtype: str
    batch: int
    frames: int
    channels: int
    hidden: int
    gates: str
    density: float
    p20_us: float | None
    p50_us: float | None
    p80_us: float | None
    macs: int
    bytes: int
    roofline_us: float
    error: float


class _Weights:
    """Weights of one block; a transposed w_out, whose columns of open channels lie in one piece each."""

    def __init__(self, channels: int, hidden: int, dtype: torch.dtype) -> None:
        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, device=DEVICE)).to(dtype)

        self.w_in, self.b_in = draw(hidden, channels, scale=channels**-0.5), draw(hidden, scale=0.1)
        self.w_dw, self.b_dw = draw(hidden, TAPS, scale=0.5), draw(hidden, scale=0.1)
        self.w_out = draw(hidden, channels, scale=hidden**-0.5).t()
        self.b_out = draw(channels, scale=0.1)
        self.slope_in = torch.full((1,), 0.25, device=DEVICE, dtype=dtype)
        self.slope_dw = torch.full((1,), 0.25, device=DEVICE, dtype=dtype)
        self.dense_out = self.w_out.contiguous()

    def all(self) -> tuple[Tensor, ...]:
        return (*(self.w_in, self.b_in, self.w_dw, self.b_dw), *(self.w_out, self.b_out, self.slope_in, self.slope_dw))

    def dense(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The block in torch's own ops; a mask multiplies."""
        u = F.prelu(F.conv1d(x, self.w_in[:, :, None], self.b_in), self.slope_in)
        u = u if mask is None else u * mask
        padded = F.pad(u, ((TAPS - 1) * DILATION, 0))
        z = F.conv1d(padded, self.w_dw[:, None], self.b_dw, dilation=DILATION, groups=u.shape[1])
        z = F.prelu(z, self.slope_dw)
        if mask is None:
            return x + F.conv1d(z, self.dense_out[:, :, None], self.b_out)
        branch = F.conv1d(z * mask, self.dense_out[:, :, None], self.b_out)
        return x + branch * mask.any(1, keepdim=True)

    def dense_step(self, x: Tensor, history: Tensor) -> tuple[Tensor, Tensor]:
        u = F.prelu(F.linear(x, self.w_in, self.b_in), self.slope_in)
        window = torch.cat([history, u[:, :, None]], 2)
        z = F.prelu((window[:, :, ::DILATION] * self.w_dw).sum(2) + self.b_dw, self.slope_dw)
        return x + F.linear(z, self.dense_out, self.b_out), window[:, :, 1:].contiguous()

    def float32(self) -> _Weights:
        copy = object.__new__(_Weights)
        copy.__dict__.update({name: tensor.float() for name, tensor in self.__dict__.items()})
        return copy


class _Timer:
    """Times calls between device events, with a cold cache, within a budget of seconds for the whole run."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self._flush = torch.empty(256 * 2**20, dtype=torch.uint8, device=DEVICE)

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def quantiles(self, call: Callable[[], Any]) -> tuple[float, float, float]:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        pairs: list[list[Any]] = []
        start = time.monotonic()
        while len(pairs) < 10 or (len(pairs) < 50 and time.monotonic() - start < 0.1):
            self._flush.zero_()
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            call()
            pair[1].record()
            pairs.append(pair)
            if len(pairs) % 10 == 0:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        times = sorted(1000 * first.elapsed_time(last) for first, last in pairs)
        return times[len(times) // 5], times[len(times) // 2], times[len(times) * 4 // 5]


def _graph(call: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def _ceilings(timer: _Timer) -> dict[str, float]:
    """Bytes a second of a large copy, and operations a second of a large product of each kind."""
    source = torch.randn(2**28, device=DEVICE)
    target = torch.empty_like(source)
    seconds = 1e-6 * timer.quantiles(lambda: target.copy_(source))[1]
    ceilings = {"bytes": 2 * source.numel() * 4 / seconds}
    for name, dtype, size in (
        ("bfloat16", torch.bfloat16, 8192),
        ("tf32", torch.float32, 8192),
        ("float32", torch.float32, 4096),
    ):
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
        ceilings[name] = 2 * size**3 / (1e-6 * timer.quantiles(partial(torch.matmul, a, b))[1])
    return ceilings


def _error(expected: Tensor, actual: Tensor) -> float:
    return ((expected.float() - actual.float()).norm() / expected.float().norm()).item()


class _Bench:
    def __init__(self, seconds: float) -> None:
        self.timer = _Timer(seconds)
        self.ceilings = _ceilings(self.timer)
        self.rows: list[GpuRow] = []
        self.left_out: list[str] = []

    def measure(
        self,
        call: Callable[[], Tensor],
        expected: Tensor,
        *,
        op: str,
        provider: str,
        dtype: str,
        sizes: tuple[int, int, int, int],
        gates: str,
        mask: Tensor | None,
        launches: tuple[str, ...] = ("call", "graph"),
    ) -> None:
        """Check one provider, then time it called from Python and as a graph."""
        batch, frames, channels, hidden = sizes
        item = 2 if dtype == "bfloat16" else 4
        kept = batch * frames * hidden if mask is None else int(mask.expand(batch, hidden, frames).sum().item())
        rows = hidden if mask is None else int((mask != 0).any(2).any(0).sum().item())
        macs = kept * (2 * channels + TAPS)
        moved = item * (2 * batch * channels * frames + rows * (2 * channels + TAPS + 2) + channels)
        moved += 0 if mask is None else mask.numel()
        if op == "gated_conv_step":
            moved += item * 2 * batch * hidden * (TAPS - 1) * DILATION
        roofline = 1e6 * max(moved / self.ceilings["bytes"], 2 * macs / self.ceilings[dtype])
        name = f"{op} {provider} {dtype} {sizes} {gates}"
        try:
            error = _error(expected, call())
            for launch in launches:
                times: tuple[float | None, ...] = (None, None, None)
                if error <= TOLERANCE[dtype]:
                    times = self.timer.quantiles(call if launch == "call" else _graph(call))
                density = kept / (batch * frames * hidden)
                row: list[Any] = [op, provider, launch, dtype, *sizes, gates, density, *times]
                row += [macs, moved, roofline, error]
                self.rows.append(GpuRow(*row))
        except (RuntimeError, torch.OutOfMemoryError) as failure:
            self.left_out.append(f"{name}: {str(failure).splitlines()[0]}")

    def block(self, dtype: str, batch: int, frames: int, channels: int, hidden: int) -> None:
        """All providers, all masks, for one size."""
        torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = dtype == "tf32"
        torch.manual_seed(0)
        storage = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        weights = _Weights(channels, hidden, storage)
        exact = weights.float32()
        x = torch.randn(batch, channels, frames, device=DEVICE).to(storage)
        common: dict[str, Any] = {"op": "gated_conv", "dtype": dtype, "sizes": (batch, frames, channels, hidden)}

        def reference(mask: Tensor | None) -> Tensor:
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.allow_tf32 = False
            result = exact.dense(x.float(), None if mask is None else mask.float())
            torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = dtype == "tf32"
            return result

        expected = reference(None)
        static: dict[str, Any] = {"gates": "none", "mask": None}
        self.measure(partial(weights.dense, x), expected, provider="eager", **static, **common)
        torch._dynamo.reset()
        compiled = torch.compile(weights.dense, dynamic=False)
        self.measure(partial(compiled, x), expected, provider="compile", **static, **common)
        for name in self.providers():
            call = self.ours(name, x, None, weights)
            self.measure(call, expected, provider=name, **static, **common)
        for gates, mask in _masks(batch, hidden, frames):
            expected = reference(mask)
            as_numbers = mask.to(storage)
            masked: dict[str, Any] = {"gates": gates, "mask": mask, "launches": ("graph",)}
            self.measure(partial(weights.dense, x, as_numbers), expected, provider="masked dense", **masked, **common)
            for name in self.providers():
                self.measure(self.ours(name, x, mask, weights), expected, provider=name, **masked, **common)

    @staticmethod
    def providers() -> list[str]:
        return [name for name in ("triton", "cuda") if backends.BACKENDS[name].unavailable() is None]

    @staticmethod
    def ours(name: str, x: Tensor, mask: Tensor | None, weights: _Weights) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with backends.use(name):
                return ops.gated_conv(x, mask, None, *weights.all(), dilation=DILATION)

        return call

    def step(self, streams: int, channels: int, hidden: int) -> None:
        """One frame of many streams, without gates and at a quarter of the channels."""
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest")
        weights = _Weights(channels, hidden, torch.float32)
        x = torch.randn(streams, channels, device=DEVICE)
        history = torch.randn(streams, hidden, (TAPS - 1) * DILATION, device=DEVICE)
        common: dict[str, Any] = {"op": "gated_conv_step", "dtype": "float32", "sizes": (streams, 1, channels, hidden)}
        expected = weights.dense_step(x, history)[0]
        static: dict[str, Any] = {"gates": "none", "mask": None}
        self.measure(lambda: weights.dense_step(x, history)[0], expected, provider="eager", **static, **common)
        mask = torch.rand(streams, hidden, 1, device=DEVICE) < 0.25
        open_now = mask[:, :, 0].contiguous()
        with backends.use("reference"):
            some = slice(0, 64)
            gated = ops.gated_conv_step(x[some], history[some], open_now[some], None, *weights.all(), dilation=DILATION)
        for name in self.providers():
            for gates, gate, want in (("none", None, expected), ("random", open_now, gated[0])):

                def call(name: str = name, gate: Tensor | None = gate) -> Tensor:
                    with backends.use(name):
                        y, _ = ops.gated_conv_step(x, history, gate, None, *weights.all(), dilation=DILATION)
                    return y[: len(want)] if gate is not None else y  # noqa: B023  (called in this turn of the loop)

                chosen_mask = None if gate is None else mask
                self.measure(call, want, provider=name, gates=gates, mask=chosen_mask, **common)


def _masks(batch: int, hidden: int, frames: int) -> Iterator[tuple[str, Tensor]]:
    """Hidden gates: constant over time, random for each frame, and recorded where there are some of that width."""
    for density in DENSITIES:
        yield "utterance", torch.rand(batch, hidden, 1, device=DEVICE) < density
    yield "random", torch.rand(batch, hidden, frames, device=DEVICE) < 0.25
    from dyncp_kernels.bench import masks

    folder = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "recorded"
    for (site, _), path in masks.find_recorded(folder).items():
        if site != "hidden":
            continue
        recorded = torch.from_numpy(masks.read_recorded(path, 4096))
        if recorded.shape[1] != hidden:
            continue
        starts = torch.arange(batch) * max(4096 // batch, 1)
        index = (starts[:, None] + torch.arange(frames)) % 4096
        block = recorded[recorded.shape[0] // 2]
        yield "recorded", block[:, index].permute(1, 0, 2).contiguous().to(DEVICE)


def run(seconds: float) -> dict[str, Any]:
    """Measure until everything is done or the time is up; what was left out is listed.

    Raises:
        RuntimeError: torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("bench.gpu: a CUDA device must be there (got none)")
    bench = _Bench(seconds)
    # The sizes with a goal come first.
    plan = [("bfloat16", *size, *width) for width in WIDTHS for size in reversed(SIZES)]
    plan += [("tf32", *size, *width) for width in WIDTHS for size in reversed(SIZES[1:])]
    plan += [("float32", *SIZES[1], *width) for width in WIDTHS[:2]]
    with torch.inference_mode():
        for streams in STREAMS:
            bench.step(streams, 128, 256)
        for entry in plan:
            if bench.timer.is_over():
                bench.left_out.append(f"gated_conv {entry}: no time left")
                continue
            bench.block(*entry)
    properties = torch.cuda.get_device_properties(0)
    return {
        "format": FORMAT,
        "machine": {
            "date": datetime.date.today().isoformat(),
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _version_of_triton(),
            "python": platform.python_version(),
        },
        "ceilings": bench.ceilings,
        "left_out": bench.left_out,
        "rows": [asdict(row) for row in bench.rows],
    }


def _version_of_triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def main(arguments: list[str] | None = None) -> int:
    """Measure, write ``<device>-<date>.json`` into a folder, print a table."""
    parser = argparse.ArgumentParser(prog="python -m dyncp_kernels.bench.gpu", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seconds", type=float, default=180.0, help="stop starting new sizes after this time")
    options = parser.parse_args(arguments)
    try:
        results = run(options.seconds)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    machine = results["machine"]
    name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name}-{machine['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table_of(results))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
