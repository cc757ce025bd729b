"""Where computing single frames pays in the offline kernel: what csrc/core/kernels/offline_cost.h is fitted to.

Times `gated_conv` with both strategies, interleaved, on one thread, for gates that are open at exactly n frames of
every tile of 48. The ratio should cross 1 where the automatic strategy changes over.

    python benchmarks/calibrate_offline.py [instruction set]
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from dyncp_kernels import _extension, ops

CHANNELS, HIDDEN, TILE, FRAMES = 128, 256, 48, 480
OPEN = (2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40)
STRATEGIES = ("tile", "frames", "automatic")
SECONDS = 20


def gates(channels: int, frames_of_tile: int) -> torch.Tensor:
    """(1, channels, FRAMES), every channel open at so many frames of each tile."""
    order = torch.rand(channels, FRAMES // TILE, TILE).argsort(-1)
    return (order < frames_of_tile).reshape(1, channels, FRAMES)


def main() -> None:
    """Print microseconds per frame of each strategy, and their ratio, for both sites."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        _extension.set_instruction_set(sys.argv[1])
    shapes = (HIDDEN, CHANNELS), (HIDDEN,), (HIDDEN, 3), (HIDDEN,), (CHANNELS, HIDDEN), (CHANNELS,), (1,), (1,)
    weights = [torch.randn(shape) * 0.1 for shape in shapes]
    x = torch.randn(1, CHANNELS, FRAMES)
    masks = {("hidden", n): (gates(HIDDEN, n), None) for n in OPEN}
    masks |= {("output", n): (None, gates(CHANNELS, n)) for n in OPEN}
    times: dict[tuple[str, int, str], list[float]] = {(*key, name): [] for key in masks for name in STRATEGIES}
    end = time.perf_counter() + SECONDS
    with torch.inference_mode():
        while time.perf_counter() < end:
            for key, pair in masks.items():
                for name in STRATEGIES:
                    _extension.set_offline_strategy(name)
                    ops.gated_conv(x, *pair, *weights)
                    begin = time.perf_counter()
                    ops.gated_conv(x, *pair, *weights)
                    times[(*key, name)].append((time.perf_counter() - begin) / FRAMES * 1e6)
    _extension.set_offline_strategy("automatic")
    print(f"instruction set {_extension.instruction_set()}, us per frame")
    for site, n in masks:
        tile, frames, automatic = (statistics.median(times[site, n, name]) for name in STRATEGIES)
        print(
            f"{site:6} open {n:2} of {TILE}: tile {tile:.3f}, frames {frames:.3f} ({frames / tile:.2f}), "
            f"automatic {automatic:.3f}"
        )


if __name__ == "__main__":
    main()
