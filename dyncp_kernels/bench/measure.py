"""Time of several engines in one process, taking turns, after a check that they compute the right thing."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dyncp_kernels.bench.engines.interface import Run
from dyncp_kernels.bench.workload import Workload

__all__ = [
    "TOLERANCE",
    "Check",
    "Timing",
    "check_offline",
    "check_stream",
    "compare_masks",
    "measure",
    "timing_of",
]

TOLERANCE = {"float32": 1e-4, "int24": 1e-4, "float16": 1e-3, "bfloat16": 1e-2, "int8": 2e-2}
"""By dtype of the weights, the largest difference from the float64 reference, of a mask value or sample, that counts as
correct; both have full scale 1."""


@dataclass(frozen=True)
class Check:
    """Outcome of a correctness check; ``max_error`` is None when an output was not finite."""

    max_error: float | None
    tolerance: float

    @property
    def correct(self) -> bool:
        """Whether the outputs were within the tolerance."""
        return self.max_error is not None and self.max_error <= self.tolerance


@dataclass(frozen=True)
class Timing:
    """Microseconds per frame over all counted calls."""

    p50: float
    p99: float
    calls: int


def check_stream(
    run: Run, work: Workload, dtype: str = "float32", frames: int | None = None, frames_per_call: int = 1
) -> Check:
    """Stream the workload's first ``frames`` frames (default all) from the start and compare every mask."""
    run.reset()
    masks = []
    for call in range((frames or work.frames) // frames_per_call):
        run.place_gates(call)
        run(call)
        masks.append(run.mask().reshape(work.batch, -1, frames_per_call))
    got = np.concatenate(masks, axis=-1)
    return compare_masks(got, work.expected[..., : got.shape[-1]].numpy(), dtype)


def check_offline(run: Run, work: Workload, dtype: str = "float32") -> Check:
    """Compare the masks of one call."""
    run.place_gates(0)
    run(0)
    return compare_masks(run.mask(), work.expected.numpy(), dtype)


def compare_masks(got: np.ndarray, expected: np.ndarray, dtype: str) -> Check:
    """Compare masks, or samples, with the reference."""
    if got.shape != expected.shape:
        raise ValueError(f"check: masks must have shape {expected.shape} (got {got.shape})")
    error = float(np.abs(got - expected).max()) if np.isfinite(got).all() else None
    return Check(error, TOLERANCE[dtype])


def measure(
    runs: Mapping[str, Run],
    frames_per_call: Mapping[str, int],
    *,
    cycle: int,
    calls: int,
    settle: int,
    seconds: float,
    least_rounds: int = 5,
) -> dict[str, Timing]:
    """Median and 99th percentile of the time per frame.

    The engines take turns in an order that is drawn anew for each round, so that a disturbance hits them alike. In its
    turn an engine makes ``settle`` calls that are not counted, and at least as many as it has sets of buffers, to get
    its own data back into the caches, then ``calls`` that are. The first round warms up and is not counted. Garbage
    collection is off.

    Args:
        runs: prepared engines.
        frames_per_call: of each.
        cycle: number of different calls; a stream goes round them.
        calls: counted calls in a turn.
        settle: uncounted calls in a turn.
        seconds: about how long to measure.
        least_rounds: counted rounds even if that takes longer.
    """
    times: dict[str, list[int]] = {name: [] for name in runs}
    position = dict.fromkeys(runs, 0)
    order = list(runs)
    draw = random.Random(0)
    clock = time.perf_counter_ns
    for run in runs.values():
        run.reset()
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        rounds = -1
        while rounds < least_rounds or time.perf_counter() < end:
            draw.shuffle(order)
            for name in order:
                run, frame, counted = runs[name], position[name], times[name]
                uncounted = max(settle, run.buffers)
                for call in range(uncounted + calls):
                    run.place_gates(frame)
                    start = clock()
                    run(frame)
                    elapsed = clock() - start
                    if call >= uncounted and rounds >= 0:
                        counted.append(elapsed)
                    frame = (frame + 1) % cycle
                position[name] = frame
            rounds += 1
    finally:
        if was_enabled:
            gc.enable()
    return {name: timing_of(times[name], frames_per_call[name]) for name in runs}


def timing_of(nanoseconds: Sequence[int] | np.ndarray, frames: int) -> Timing:
    """Times per frame, of calls on so many frames."""
    p50, p99 = np.percentile(nanoseconds, (50, 99)) / (1e3 * frames)
    return Timing(float(p50), float(p99), len(nanoseconds))
