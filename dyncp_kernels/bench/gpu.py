"""Times of the block on a GPU: ``python -m dyncp_kernels.bench.gpu``.

Every measurement is checked against a float32 product of dense weights and masks first, a graph after a replay of its
own; a row whose output is wrong carries no time.  Beside each stands its roofline: the larger of the bytes it must move
over the copy bandwidth and of the operations it must do over the rate of a large product, both measured on the same
device just before.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import re
import subprocess
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
from dyncp_kernels._atomic import replacing
from dyncp_kernels.bench.gpu_report import FORMAT, table_of
from dyncp_kernels.ops import backends

__all__ = ["GpuRow", "main", "run"]

WIDTHS = ((128, 256), (256, 512), (512, 1024), (512, 2048))
SIZES = ((1, 500), (32, 250), (256, 250))
DENSITIES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
OURS = ("triton", "cuda")
# What max-autotune may take for one size; it does not begin with less time left.
AUTOTUNE_SECONDS = 60.0
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
        provider: ``eager``, ``compile`` (torch.compile), ``max-autotune`` (the same with that mode), ``masked dense``,
            ``triton`` or ``cuda``.
        launch: ``call`` from Python, or ``graph`` replay.
        dtype: ``float32`` (IEEE products), ``tf32`` or ``bfloat16``.
        batch: items, or streams of a step.
        frames: frames of an item; 1 for a step.
        channels: of x and y.
        hidden: hidden channels.
        site: gated channels: ``none``, ``hidden`` or ``output``.
        gates: ``none``, ``utterance`` (random, constant over time), ``random`` (for each frame) or ``recorded`` (from
            the shipped models; for wider blocks those of several blocks side by side).
        density: share of open (frame, channel) pairs of the masks used.
        p20_us: 20th percentile of the time of one call, microseconds; None when the output was wrong.
        p50_us: median.
        p80_us: 80th percentile.
        macs: multiplications that the masks leave.
        bytes: bytes that have to move at least: x, y, gates, weights of channels that are open somewhere.
        roofline_us: the time that these operations or bytes take at the measured ceilings.
        error: relative error of the output against the float32 reference; None when it is not finite.
    """

    op: str
    provider: str
    launch: str
    dtype: str
    batch: int
    frames: int
    channels: int
    hidden: int
    site: str
    gates: str
    density: float
    p20_us: float | None
    p50_us: float | None
    p80_us: float | None
    macs: int
    bytes: int
    roofline_us: float
    error: float | None


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

    def dense(self, x: Tensor, mask: Tensor | None = None, out_mask: Tensor | None = None) -> Tensor:
        """The block in torch's own ops; masks of the hidden and the output channels multiply."""
        u = F.prelu(F.conv1d(x, self.w_in[:, :, None], self.b_in), self.slope_in)
        u = u if mask is None else u * mask
        padded = F.pad(u, ((TAPS - 1) * DILATION, 0))
        z = F.conv1d(padded, self.w_dw[:, None], self.b_dw, dilation=DILATION, groups=u.shape[1])
        z = F.prelu(z, self.slope_dw)
        branch = F.conv1d(z if mask is None else z * mask, self.dense_out[:, :, None], self.b_out)
        if mask is not None:
            branch = branch * mask.any(1, keepdim=True)
        return x + (branch if out_mask is None else branch * out_mask)

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
        while len(pairs) < 10 or (len(pairs) < 30 and time.monotonic() - start < 0.05):
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


class _Once:
    """Runs calls once, for what has to be compiled; times nothing."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def quantiles(self, call: Callable[[], Any]) -> tuple[float, float, float]:
        call()
        return 0.0, 0.0, 0.0


def _graph(call: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
    """A graph of the call: its replay, and the tensor that each replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return graph.replay, output


def _ceilings(timer: _Timer | _Once) -> dict[str, float]:
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


def _error(expected: Tensor, actual: Tensor) -> float | None:
    error = ((expected.float() - actual.float()).norm() / expected.float().norm()).item()
    return error if math.isfinite(error) else None


def _allow_tf32(allowed: bool) -> None:
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


class _Bench:
    def __init__(self, timer: _Timer | _Once, ours: tuple[str, ...] = OURS) -> None:
        self.timer = timer
        self.ceilings = _ceilings(timer) if isinstance(timer, _Timer) else dict.fromkeys((*TOLERANCE, "bytes"), 1.0)
        self.rows: list[GpuRow] = []
        self.left_out: list[str] = []
        self.providers = [name for name in ours if backends.BACKENDS[name].unavailable() is None]
        # After an illegal access every further call on the device fails.
        self.device_failed = False

    def measure(
        self,
        call: Callable[[], Tensor],
        expected: Tensor,
        *,
        op: str,
        provider: str,
        dtype: str,
        sizes: tuple[int, int, int, int],
        site: str,
        gates: str,
        mask: Tensor | None,
        launches: tuple[str, ...] = ("call", "graph"),
    ) -> None:
        """Check one provider, then time it called from Python and as a graph."""
        batch, frames, channels, hidden = sizes
        item = 2 if dtype == "bfloat16" else 4
        gated = channels if site == "output" else hidden
        kept = batch * frames * gated if mask is None else int(mask.expand(batch, gated, frames).sum().item())
        rows = gated if mask is None else int((mask != 0).any(2).any(0).sum().item())
        open_hidden, open_out = (hidden, rows) if site == "output" else (rows, channels)
        macs = kept * hidden + batch * frames * hidden * (channels + TAPS)
        if site != "output":
            macs = kept * (2 * channels + TAPS)
        weights = open_hidden * (channels + open_out + TAPS + 2) + open_out
        moved = item * (2 * batch * channels * frames + weights)
        moved += 0 if mask is None else mask.numel()
        if op == "gated_conv_step":
            moved += item * 2 * batch * hidden * (TAPS - 1) * DILATION
        roofline = 1e6 * max(moved / self.ceilings["bytes"], 2 * macs / self.ceilings[dtype])
        density = kept / (batch * frames * gated)
        for launch in launches:
            if self.device_failed:
                return
            try:
                run, output = (call, call()) if launch == "call" else _graph(call)
                if launch == "graph":
                    run()
                error = _error(expected, output)
                times: tuple[float | None, ...] = (None, None, None)
                if error is not None and error <= TOLERANCE[dtype]:
                    times = self.timer.quantiles(run)
                row: list[Any] = [op, provider, launch, dtype, *sizes, site, gates, density, *times]
                row += [macs, moved, roofline, error]
                self.rows.append(GpuRow(*row))
            except Exception as failure:
                # Compilers have exceptions of their own; whatever fails is left out and named.
                reason = (str(failure).splitlines() or [""])[0]
                name = f"{op} {provider} {launch} {dtype} {sizes} {site} {gates}"
                self.left_out.append(f"{name}: {type(failure).__name__}: {reason}")
                self.device_failed = not _device_works()

    def block(self, dtype: str, batch: int, frames: int, channels: int, hidden: int) -> None:
        """All providers, all masks, for one size."""
        weights, x, common = self._inputs(dtype, batch, frames, channels, hidden)
        exact = weights.float32()

        def reference(mask: Tensor | None, out_mask: Tensor | None) -> Tensor:
            _allow_tf32(False)
            numbers = [None if one is None else one.float() for one in (mask, out_mask)]
            result = exact.dense(x.float(), *numbers)
            _allow_tf32(dtype == "tf32")
            return result

        expected = reference(None, None)
        static: dict[str, Any] = {"site": "none", "gates": "none", "mask": None}
        self.measure(partial(weights.dense, x), expected, provider="eager", **static, **common)
        torch._dynamo.reset()
        compiled = torch.compile(weights.dense, dynamic=False)
        self.measure(partial(compiled, x), expected, provider="compile", **static, **common)
        for name in self.providers:
            self.measure(self.ours(name, x, None, None, weights), expected, provider=name, **static, **common)
        masked_already = set()
        for site, gates, mask in _masks(batch, channels, hidden, frames):
            hidden_mask, out_mask = (mask, None) if site == "hidden" else (None, mask)
            expected = reference(hidden_mask, out_mask)
            masked: dict[str, Any] = {"site": site, "gates": gates, "mask": mask, "launches": ("graph",)}
            # What a product of masks costs does not depend on them: once for each kind.
            if (site, gates) not in masked_already:
                masked_already.add((site, gates))
                numbers = [None if one is None else one.to(x.dtype) for one in (hidden_mask, out_mask)]
                self.measure(partial(weights.dense, x, *numbers), expected, provider="masked dense", **masked, **common)
            for name in self.providers:
                call = self.ours(name, x, hidden_mask, out_mask, weights)
                self.measure(call, expected, provider=name, **masked, **common)

    def autotuned(self, dtype: str, batch: int, frames: int, channels: int, hidden: int) -> None:
        """torch.compile with max-autotune for one size, without gates, where it fits the time."""
        if self.timer.end - time.monotonic() < AUTOTUNE_SECONDS:
            self.left_out.append(f"max-autotune {dtype} {(batch, frames, channels, hidden)}: too little time left")
            return
        weights, x, common = self._inputs(dtype, batch, frames, channels, hidden)
        _allow_tf32(False)
        expected = weights.float32().dense(x.float())
        _allow_tf32(dtype == "tf32")
        torch._dynamo.reset()
        compiled = torch.compile(weights.dense, dynamic=False, mode="max-autotune-no-cudagraphs")
        static: dict[str, Any] = {"site": "none", "gates": "none", "mask": None}
        self.measure(partial(compiled, x), expected, provider="max-autotune", **static, **common)

    @staticmethod
    def _inputs(
        dtype: str, batch: int, frames: int, channels: int, hidden: int
    ) -> tuple[_Weights, Tensor, dict[str, Any]]:
        """Weights, x, and what all measurements of this size have in common; the same numbers each time."""
        _allow_tf32(dtype == "tf32")
        torch.manual_seed(0)
        storage = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        weights = _Weights(channels, hidden, storage)
        x = torch.randn(batch, channels, frames, device=DEVICE).to(storage)
        return weights, x, {"op": "gated_conv", "dtype": dtype, "sizes": (batch, frames, channels, hidden)}

    @staticmethod
    def ours(
        name: str, x: Tensor, mask: Tensor | None, out_mask: Tensor | None, weights: _Weights
    ) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with backends.use(name):
                return ops.gated_conv(x, mask, out_mask, *weights.all(), dilation=DILATION)

        return call

    def step(self, streams: int, channels: int, hidden: int) -> None:
        """One frame of many streams, without gates and at a quarter of the channels."""
        torch.manual_seed(0)
        _allow_tf32(False)
        weights = _Weights(channels, hidden, torch.float32)
        x = torch.randn(streams, channels, device=DEVICE)
        history = torch.randn(streams, hidden, (TAPS - 1) * DILATION, device=DEVICE)
        common: dict[str, Any] = {"op": "gated_conv_step", "dtype": "float32", "sizes": (streams, 1, channels, hidden)}
        expected = weights.dense_step(x, history)[0]
        static: dict[str, Any] = {"site": "none", "gates": "none", "mask": None}
        self.measure(lambda: weights.dense_step(x, history)[0], expected, provider="eager", **static, **common)
        torch._dynamo.reset()
        compiled = torch.compile(weights.dense_step, dynamic=False)
        self.measure(lambda: compiled(x, history)[0], expected, provider="compile", **static, **common)
        mask = torch.rand(streams, hidden, 1, device=DEVICE) < 0.25
        open_now = mask[:, :, 0].contiguous()
        with backends.use("reference"):
            some = slice(0, 64)
            gated = ops.gated_conv_step(x[some], history[some], open_now[some], None, *weights.all(), dilation=DILATION)
        for name in self.providers:
            for gates, gate, want in (("none", None, expected), ("random", open_now, gated[0])):

                def call(name: str = name, gate: Tensor | None = gate) -> Tensor:
                    with backends.use(name):
                        y, _ = ops.gated_conv_step(x, history, gate, None, *weights.all(), dilation=DILATION)
                    return y[: len(want)] if gate is not None else y  # noqa: B023  (called in this turn of the loop)

                chosen: dict[str, Any] = {"site": "none" if gate is None else "hidden", "gates": gates}
                chosen["mask"] = None if gate is None else mask
                self.measure(call, want, provider=name, **chosen, **common)


def _device_works() -> bool:
    """Whether the device still takes work: after an illegal access it does not."""
    try:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _masks(batch: int, channels: int, hidden: int, frames: int) -> Iterator[tuple[str, str, Tensor]]:
    """Site, kind and gates: constant over time and random for each frame at all densities, and recorded ones."""
    for density in DENSITIES:
        yield "hidden", "utterance", torch.rand(batch, hidden, 1, device=DEVICE) < density
    for density in DENSITIES:
        yield "hidden", "random", torch.rand(batch, hidden, frames, device=DEVICE) < density
    yield "output", "utterance", torch.rand(batch, channels, 1, device=DEVICE) < 0.25
    from dyncp_kernels.bench import masks

    folder = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "recorded"
    for (site, _), path in masks.find_recorded(folder).items():
        rows = hidden if site == "hidden" else channels
        recorded = torch.from_numpy(masks.read_recorded(path, 4096))
        blocks, width, length = recorded.shape
        if rows % width != 0 or rows > blocks * width:
            continue
        first = blocks // 2 if rows == width else 0
        wide = recorded[first : first + rows // width].reshape(rows, length)
        starts = torch.arange(batch) * max(length // batch, 1)
        index = (starts[:, None] + torch.arange(frames)) % length
        yield site, "recorded", wide[:, index].permute(1, 0, 2).contiguous().to(DEVICE)


def _plan() -> list[partial[None]]:
    """What is measured, the sizes and types with a goal first, so that a short time leaves out the others."""
    plan = [partial(_Bench.step, streams=streams, channels=WIDTHS[0][0], hidden=WIDTHS[0][1]) for streams in STREAMS]
    sizes = [(*size, *width) for size in reversed(SIZES) for width in WIDTHS]
    for dtype in ("bfloat16", "tf32", "float32"):
        plan += [partial(_Bench.block, dtype=dtype, **_named(size)) for size in sizes]
    for dtype in ("bfloat16", "tf32"):
        plan += [partial(_Bench.autotuned, dtype=dtype, **_named(size)) for size in sizes]
    return plan


def _named(size: tuple[int, ...]) -> dict[str, Any]:
    return dict(zip(("batch", "frames", "channels", "hidden"), size))


def _describe(entry: partial[None]) -> str:
    return " ".join([entry.func.__name__, *[f"{name} {value}" for name, value in entry.keywords.items()]])


def _work_through(bench: _Bench, plan: list[partial[None]], after_each: Callable[[], None] = lambda: None) -> None:
    """Measure until everything is done, the time is up or the device has failed; what was left out is listed."""
    with torch.inference_mode():
        for entry in plan:
            if bench.device_failed or bench.timer.is_over():
                reason = "the device had failed" if bench.device_failed else "no time left"
                bench.left_out.append(f"{_describe(entry)}: {reason}")
                continue
            try:
                entry(bench)
            except Exception as failure:
                bench.left_out.append(f"{_describe(entry)}: {type(failure).__name__}: {failure}")
                bench.device_failed = not _device_works()
            after_each()


def run(
    seconds: float,
    ours: tuple[str, ...] = OURS,
    notes: tuple[str, ...] = (),
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> dict[str, Any]:
    """Measure for about that many seconds and give the results; `save` gets them after each size, too.

    Args:
        seconds: no new size is begun after them.
        ours: back-ends to measure, those whose tests passed.
        notes: what to say beside the results.
        save: called with the results so far.

    Raises:
        RuntimeError: torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("bench.gpu: a CUDA device must be there (got none)")
    bench = _Bench(_Timer(seconds), ours)
    missing = [f"{name}: {backends.BACKENDS[name].unavailable()}" for name in ours if name not in bench.providers]
    bench.left_out += missing + [f"{name}: not asked for" for name in OURS if name not in ours]
    properties = torch.cuda.get_device_properties(0)
    machine = {
        "date": datetime.date.today().isoformat(),
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version_of_triton(),
        "python": platform.python_version(),
    }

    def results() -> dict[str, Any]:
        return {
            "format": FORMAT,
            "machine": machine,
            "notes": list(notes),
            "ceilings": bench.ceilings,
            "left_out": bench.left_out,
            "rows": [asdict(row) for row in bench.rows],
        }

    _work_through(bench, _plan(), lambda: save(results()))
    return results()


def compile_ahead(seconds: float, ours: tuple[str, ...] = OURS, processes: int | None = None) -> None:
    """Fill the compilers' caches with what `run` needs, in several processes at once; times nothing."""
    count = processes or max(1, min(6, (os.cpu_count() or 1) // 2))
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    command = [sys.executable, "-m", "dyncp_kernels.bench.gpu", "--seconds", str(seconds), "--ours", ",".join(ours)]
    children = [
        subprocess.Popen(
            [*command, "--part", f"{part}/{count}"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part in range(count)
    ]
    # A size that was begun may be finished, within the same time again.
    end = time.monotonic() + 1.8 * seconds
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _compile_part(part: int, count: int, seconds: float, ours: tuple[str, ...]) -> None:
    plan = [entry for entry in _plan() if entry.func is not _Bench.autotuned]
    _work_through(_Bench(_Once(seconds), ours), plan[part::count])


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
    parser.add_argument("--ours", default=",".join(OURS), help="back-ends to measure, with commas between them")
    parser.add_argument("--note", action="append", default=[], help="something to say beside the results")
    parser.add_argument("--compile-only", action="store_true", help="only fill the compilers' caches")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    ours = tuple(name for name in options.ours.split(",") if name)
    unknown = [name for name in ours if name not in OURS]
    if unknown:
        parser.error(f"--ours: back-ends must be among {', '.join(OURS)} (got {', '.join(unknown)})")
    if options.part:
        part, count = map(int, options.part.split("/"))
        _compile_part(part, count, options.seconds, ours)
        return 0
    if options.compile_only:
        compile_ahead(options.seconds, ours)
        return 0

    def path_of(results: dict[str, Any]) -> Path:
        machine = results["machine"]
        name = re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")
        return Path(options.out) / f"{name}-{machine['date']}.json"

    def save(results: dict[str, Any]) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        with replacing(path_of(results)) as part:
            part.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    try:
        results = run(options.seconds, ours, tuple(options.note), save)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    save(results)
    print(table_of(results))
    print(f"written: {path_of(results)}")
    wrong = sum(row["p50_us"] is None for row in results["rows"])
    if wrong:
        print(f"bench.gpu: {wrong} measurements gave a wrong output and have no time", file=sys.stderr)
    return 1 if wrong or not results["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
