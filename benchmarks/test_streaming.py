"""One frame a call, per engine: `pytest benchmarks/test_streaming.py --benchmark-only`.

For figures that compare engines use `dyncp bench`, which lets them take turns; these time one engine after another.
"""

import itertools

import pytest

from dyncp_kernels.bench.engines import ENGINES
from dyncp_kernels.bench.engines.dyncp import HopStream, Stream
from dyncp_kernels.bench.masks import random_masks
from dyncp_kernels.bench.measure import check_stream
from dyncp_kernels.bench.workload import hop_workload, synthetic_workload
from dyncp_kernels.engine import PRECISIONS
from dyncp_kernels.nn import ConvFSENetConfig

FRAMES = 100


def workload(site="none", density=1.0):
    config = ConvFSENetConfig(site=site)
    if site == "none":
        return synthetic_workload(config, 1, FRAMES)
    masks = random_masks(config.blocks, 128 if site == "output" else 256, FRAMES, density)
    return synthetic_workload(config, 1, FRAMES, masks=masks, density=density, source="random")


def time_frames(benchmark, run, work, dtype="float32"):
    assert check_stream(run, work, dtype).correct
    run.reset()
    frames = itertools.cycle(range(FRAMES))

    def next_frame():
        frame = next(frames)
        run.place_gates(frame)
        return (frame,), {}

    benchmark.extra_info["macs_per_frame"] = work.macs_per_frame
    benchmark.pedantic(run, setup=next_frame, rounds=1000, warmup_rounds=100)


@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.stream and not engine.gated])
def test_static_network(benchmark, name):
    for module in ENGINES[name].modules:
        pytest.importorskip(module)
    work = workload()
    time_frames(benchmark, ENGINES[name].stream(work, 1), work)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_network(benchmark, site, density):
    work = workload(site, density)
    time_frames(benchmark, ENGINES["dyncp gated"].stream(work, 1), work)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_narrower_weights(benchmark, precision):
    work = workload()
    time_frames(benchmark, Stream(work, 1, precision), work, precision)


@pytest.mark.parametrize("site", ["none", "output", "hidden"])
def test_samples_in_samples_out(benchmark, site):
    work = hop_workload(workload(site, 0.25))
    time_frames(benchmark, HopStream(work, 1), work)
