"""Whole clips a call, per engine: `pytest benchmarks/test_offline.py --benchmark-only`."""

import pytest

from dyncp_kernels.bench.engines import ENGINES
from dyncp_kernels.bench.masks import random_masks
from dyncp_kernels.bench.measure import check_offline
from dyncp_kernels.bench.workload import synthetic_workload
from dyncp_kernels.nn import ConvFSENetConfig

CLIPS = [(1, 500), (16, 250)]
ROUNDS = 5


def time_clips(benchmark, run, work):
    assert check_offline(run, work).correct
    benchmark.extra_info["frames"] = work.batch * work.frames
    benchmark.extra_info["macs_per_frame"] = work.macs_per_frame
    benchmark.pedantic(run, args=(0,), rounds=ROUNDS, warmup_rounds=1)


@pytest.mark.parametrize(("batch", "frames"), CLIPS)
@pytest.mark.parametrize("name", [name for name, engine in ENGINES.items() if engine.offline and not engine.gated])
def test_static_network(benchmark, name, batch, frames):
    for module in ENGINES[name].modules:
        pytest.importorskip(module)
    work = synthetic_workload(ConvFSENetConfig(), batch, frames)
    time_clips(benchmark, ENGINES[name].offline(work, 1), work)


@pytest.mark.parametrize(("batch", "frames"), CLIPS)
@pytest.mark.parametrize("density", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_network(benchmark, site, density, batch, frames):
    config = ConvFSENetConfig(site=site)
    masks = random_masks(config.blocks, 128 if site == "output" else 256, frames, density)
    work = synthetic_workload(config, batch, frames, masks=masks, density=density, source="random")
    time_clips(benchmark, ENGINES["dyncp gated"].offline(work, 1), work)
