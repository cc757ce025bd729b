"""Times of the Triton forward kernels with blocks of other sizes, to fit dyncp_kernels/triton/tile_sizes.py to.

    python benchmarks/sweep_gpu_tiles.py [--seconds 80]

Compiles everything first, in several processes, then times each kernel by itself with cold caches, the fastest first;
`fused_block` with its lists of channels, as a whole block.
The row called "rule" has the blocks that tile_sizes.py gives.  ``--check`` runs everything once at small sizes, under
Triton's interpreter where TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from torch._library.triton import set_wrap_triton_enabled

from dyncp_kernels.bench import gpu
from dyncp_kernels.triton import tile_sizes
from dyncp_kernels.triton.block import Block, convolve_depthwise, convolve_pointwise, padded_copy, pitch_of
from dyncp_kernels.triton.gated_conv import forward_on_chip
from dyncp_kernels.triton.launches import is_constant, list_of

PROCESSES = 8

# Rows, frames, depth, warps, stages.
PRODUCTS = {
    "bfloat16": [
        *((128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 128, 32, 8, 4), (128, 256, 64, 8, 3), (256, 128, 64, 8, 3)),
        *((128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (128, 64, 64, 8, 3), (256, 64, 64, 8, 3), (64, 128, 64, 4, 3)),
        *((64, 64, 64, 4, 3), (64, 32, 128, 4, 3), (32, 32, 128, 4, 3), (32, 64, 64, 4, 3), (64, 16, 128, 4, 3)),
    ],
    "tf32": [
        *((128, 128, 32, 8, 3), (128, 128, 32, 8, 4), (128, 64, 32, 4, 3), (128, 256, 32, 8, 3), (64, 128, 32, 4, 3)),
        *((128, 128, 64, 8, 2), (64, 64, 32, 4, 3), (64, 32, 64, 4, 3), (32, 32, 64, 4, 3)),
    ],
    "float32": [
        *((64, 64, 16, 4, 2), (64, 64, 16, 4, 3), (128, 64, 16, 8, 2), (64, 128, 16, 4, 2), (128, 128, 16, 8, 2)),
        *((64, 64, 32, 4, 2), (32, 64, 16, 4, 3), (32, 32, 32, 4, 3)),
    ],
}
# Rows, frames, warps.
ROWS = [(16, 256, 8), (8, 256, 4), (16, 256, 4), (4, 256, 4), (32, 128, 8), (64, 64, 8), (32, 64, 4), (16, 64, 4)]
# Frames, hidden channels, warps, stages.
FUSED = [
    (32, 64, 4, 2),
    (32, 64, 4, 3),
    (16, 64, 4, 2),
    (64, 64, 8, 2),
    (64, 32, 4, 2),
    (32, 32, 4, 3),
    (16, 128, 4, 2),
]

GATES = ("none", "item", "frame")
SIZES = [
    *(("bfloat16", 256, 250, 512, 2048, gates) for gates in GATES),
    *(("bfloat16", 256, 250, 128, 256, gates) for gates in GATES),
    *(("bfloat16", 1, 500, 128, 256, gates) for gates in GATES),
    *(("bfloat16", 1, 500, 512, 2048, gates) for gates in GATES),
    *((dtype, 256, 250, 512, 1024, gates) for dtype in ("tf32", "float32") for gates in ("none", "item")),
    *((dtype, 1, 500, 512, 1024, "none") for dtype in ("tf32", "float32")),
]
SMALL = [(dtype, 2, 70, 24, 40, gates) for dtype in ("bfloat16", "float32") for gates in GATES]


@dataclass(frozen=True)
class Choice:
    """One kernel with one set of blocks: a call that fills `result`."""

    name: str
    call: Callable[[], Any]
    result: Tensor
    is_rule: bool


def choices(dtype: str, batch: int, frames: int, channels: int, hidden: int, gates: str) -> Iterator[Choice]:
    """Every kernel of the forward for one size, with every set of blocks; a quarter of the channels is open."""
    weights, x, _ = gpu._Bench._inputs(dtype, batch, frames, channels, hidden)
    gate = None
    if gates != "none":
        gate = torch.rand(batch, hidden, 1 if gates == "item" else frames, device=gpu.DEVICE) < 0.25
    block = Block(x, (gate, None, *weights.all()), gpu.DILATION, True, True)
    per_tile = not is_constant(gate)
    rule = tile_sizes.forward_tiles(batch, frames, hidden, channels, block.precision, per_tile=per_tile)
    pitch = pitch_of(frames)
    # A channel that is closed throughout leaves its row as it was: they start equal for all sets of blocks.
    u, z = (torch.zeros(batch, hidden, pitch, dtype=x.dtype, device=x.device) for _ in range(2))
    y = torch.empty_like(x)
    padded = padded_copy(x, rule, block.precision)

    # Where tiles have lists of their own, all sets of blocks have the same tiles.
    hidden_list = list_of(block.hidden_gate, rule.expand.frames, x)

    def fits(tile: Any) -> bool:
        return not per_tile or tile.frames == rule.expand.frames

    def expand(source: Tensor, tile: Any) -> None:
        options: dict[str, Any] = {"bias": block.b_in, "activation": (block.slope_in,), "row_list": hidden_list}
        convolve_pointwise(source, block.w_in, u, tile, block.precision, **options)

    def project(tile: Any) -> None:
        options: dict[str, Any] = {"bias": block.b_out, "depth_list": hidden_list, "added": x}
        convolve_pointwise(z, block.w_out, y, tile, block.precision, **options)

    products = [tile_sizes.ProductTile(*numbers) for numbers in PRODUCTS[dtype]]
    for source in (padded, x) if padded is not x else (x,):
        name = "expand" if source is padded else "expand without a copy of x"
        for tile in dict.fromkeys((rule.expand, *filter(fits, products))):
            yield Choice(f"{name} {tile}", partial(expand, source, tile), u, tile == rule.expand)
    if padded is not x:
        yield Choice("pad_frames", partial(padded_copy, x, rule, block.precision), padded, True)
    for row_tile in dict.fromkeys((rule.depthwise, *filter(fits, (tile_sizes.RowTile(*r) for r in ROWS)))):
        call = partial(convolve_depthwise, block, u, hidden_list, row_tile, z)
        yield Choice(f"depthwise {row_tile}", call, z, row_tile == rule.depthwise)
    for tile in dict.fromkeys((rule.project, *filter(fits, products))):
        yield Choice(f"project {tile}", partial(project, tile), y, tile == rule.project)
    fused = tile_sizes.fused_tile(batch, frames, channels, hidden, channels, block.precision)
    if fused is not None:
        for numbers in FUSED:
            other = replace(fused, **dict(zip(("frames", "hidden", "warps", "stages"), numbers)))
            yield Choice(f"fused_block {other}", partial(forward_on_chip, block, other, y), y, other == fused)


def sweep(timer: Any, sizes: list[tuple[Any, ...]], part: int = 0, parts: int = 1) -> None:
    """Time every `parts`-th choice from `part` on and print them."""
    index = 0
    for size in sizes:
        rows = []
        for choice in choices(*size):
            index += 1
            if timer.is_over() or index % parts != part:
                continue
            try:
                rows.append((timer.quantiles(choice.call)[1], choice))
            except Exception as failure:
                # A set of blocks that the device or the compiler cannot take is left out and named.
                print(f"{size} {choice.name}: {type(failure).__name__}: {str(failure)[:100]}", flush=True)
        if parts == 1:
            for time_us, choice in sorted(rows, key=lambda row: (row[1].name.split()[0], row[0])):
                print(f"{size} {time_us:8.1f} us{' rule' if choice.is_rule else ''} {choice.name}", flush=True)


def compile_part(part: int, seconds: float) -> None:
    """Compile a share of the choices, in a process of its own."""
    with torch.inference_mode(), set_wrap_triton_enabled(False):
        sweep(gpu._Once(seconds), SIZES, part, PROCESSES)


def check() -> None:
    """Run every choice once at small sizes: blocks must not change what comes out."""
    gpu.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    for size in SMALL:
        expected: dict[int, Tensor] = {}
        for choice in choices(*size):
            choice.call()
            result = expected.setdefault(id(choice.result), choice.result.float().clone())
            frames = size[2]
            error = (choice.result.float() - result)[..., :frames].norm() / result[..., :frames].norm()
            if not error <= 1e-2:
                raise SystemExit(f"{size} {choice.name}: the result differs by {error:.3g}")


def main() -> None:
    """Compile, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=80.0, help="time for compiling, and the same for measuring")
    parser.add_argument("--check", action="store_true", help="run everything once at small sizes and compare")
    options = parser.parse_args()
    with torch.inference_mode(), set_wrap_triton_enabled(False):
        if options.check:
            check()
            print("all blocks give the same results")
            return
        start = time.monotonic()
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            list(pool.map(compile_part, range(PROCESSES), [options.seconds] * PROCESSES))
        print(f"compiled in {time.monotonic() - start:.0f} s")
        sweep(gpu._Timer(options.seconds), SIZES)


if __name__ == "__main__":
    main()
