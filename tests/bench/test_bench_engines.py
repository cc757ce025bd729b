import numpy as np
import pytest
import torch

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.bench.engines import ENGINES
from dyncp_kernels.bench.engines.cold_caches import ColdCaches
from dyncp_kernels.bench.masks import random_masks
from dyncp_kernels.bench.measure import check_offline, check_stream
from dyncp_kernels.bench.workload import hop_workload, shipped_workload, synthetic_workload
from dyncp_kernels.nn import ConvFSENetConfig, macs_per_frame
from dyncp_kernels.nn.default_models import pruned_models

needs_extension = pytest.mark.skipif(not extension_loaded(), reason="needs the native extension")

FRAMES = 30


def workload(site="none", density=0.4, batch=1):
    config = ConvFSENetConfig(channels=16, hidden=24, stacks=2, site=site)
    if site == "none":
        return synthetic_workload(config, batch, FRAMES)
    masks = random_masks(6, 16 if site == "output" else 24, FRAMES, density)
    # A frame that keeps nothing, where the hidden site's output is its input.
    masks[2, :, 7] = False
    return synthetic_workload(config, batch, FRAMES, masks=masks, density=density, source="random")


def prepared(name, mode, work, *frames):
    engine = ENGINES[name]
    for module in engine.modules:
        pytest.importorskip(module)
    if name.startswith("dyncp") and not extension_loaded():
        pytest.skip("needs the native extension")
    make = getattr(engine, mode)
    if make is None:
        pytest.skip(f"no {mode} form")
    threads = torch.get_num_threads()
    try:
        return make(work, 1, *frames)
    finally:
        torch.set_num_threads(threads)


FAST = [name for name in ENGINES if name != "torch.compile"]
DENSE = [name for name in FAST if not ENGINES[name].gated]
GATED = [name for name in FAST if ENGINES[name].gated]


@pytest.mark.parametrize("name", DENSE)
def test_dense_engines_stream_what_the_reference_gives_again_after_a_reset(name):
    work = workload()
    run = prepared(name, "stream", work)
    assert check_stream(run, work).max_error < 1e-5
    assert check_stream(run, work, frames=5).max_error < 1e-5


@pytest.mark.parametrize("frames", [2, 3, 8])
@pytest.mark.parametrize("name", [name for name in DENSE if ENGINES[name].chunks is not None])
def test_dense_engines_stream_chunks_and_start_again_after_a_reset(name, frames):
    # More chunks than the other engines' buffers of earlier rows have room for.
    work = synthetic_workload(ConvFSENetConfig(channels=16, hidden=24, stacks=2), 1, 40 * frames)
    run = prepared(name, "chunks", work, frames)
    assert check_stream(run, work, frames_per_call=frames).max_error < 1e-5
    assert check_stream(run, work, frames=5 * frames, frames_per_call=frames).max_error < 1e-5


@pytest.mark.parametrize("name", [name for name in DENSE if ENGINES[name].streams is not None])
def test_dense_engines_stream_a_batch_and_start_again_after_a_reset(name):
    work = workload(batch=3)
    assert not torch.equal(work.features[0], work.features[1])
    run = prepared(name, "streams", work)
    assert check_stream(run, work).max_error < 1e-5
    assert check_stream(run, work, frames=5).max_error < 1e-5


@pytest.mark.parametrize("name", [name for name in DENSE if ENGINES[name].reduced is not None])
def test_rivals_stream_with_narrower_weights_what_the_reference_gives_nearly(name):
    work = workload()
    for module in ENGINES[name].modules:
        pytest.importorskip(module)
    makers = ENGINES[name].reduced()
    assert "int8" in makers
    for dtype, make in makers.items():
        threads = torch.get_num_threads()
        run = make(work, 1)
        torch.set_num_threads(threads)
        check = check_stream(run, work, dtype)
        # No closer than so few bits allow: the weights are narrower indeed.
        assert check.correct
        assert check.max_error > 1e-5, dtype


@needs_extension
@pytest.mark.parametrize("name", pruned_models())
def test_shipped_networks_stream_several_parts_of_the_demo_clip(name):
    work = shipped_workload(name, streams=5, frames=40)
    assert work.features.shape == (5, 257, 40)
    assert not torch.equal(work.features[0], work.features[1])
    assert check_stream(prepared("dyncp gated", "streams", work), work).max_error < 1e-5


@needs_extension
@pytest.mark.parametrize("frames", [2, 8])
@pytest.mark.parametrize("name", pruned_models())
def test_shipped_networks_stream_chunks_of_the_demo_clip(name, frames):
    work = shipped_workload(name)
    assert 0.1 < work.density < 0.5
    assert check_stream(prepared("dyncp gated", "chunks", work, frames), work, frames_per_call=frames).max_error < 1e-5


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_engines_stream_what_the_masks_ask_for(name, site):
    work = workload(site)
    assert check_stream(prepared(name, "stream", work), work).max_error < 1e-5


@pytest.mark.parametrize("name", DENSE)
def test_dense_engines_process_clips(name):
    work = workload(batch=2)
    assert check_offline(prepared(name, "offline", work), work).max_error < 1e-5


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_gated_engines_process_clips_with_a_mask_each(name, site):
    work = workload(site, batch=2)
    assert check_offline(prepared(name, "offline", work), work).max_error < 1e-5


@needs_extension
def test_cold_caches_read_other_memory_before_every_call_and_change_nothing_else():
    work = workload("hidden")
    reads = []

    class Watched(np.ndarray):
        def sum(self):
            reads.append(self.size)

    run = ColdCaches(prepared("dyncp gated", "stream", work), np.ones(800, np.int64).view(Watched))
    assert check_stream(run, work).max_error < 1e-5
    assert reads == [100] * FRAMES


@needs_extension
@pytest.mark.parametrize("site", ["output", "hidden"])
def test_the_streaming_engine_decides_the_wanted_gates_by_itself(site):
    work = workload(site)
    run = prepared("dyncp gated", "stream", work)
    for frame in range(FRAMES):
        run.place_gates(frame)
        _, gates = run.engine.step_with_gates(work.features[0, :, frame][None].contiguous())
        for got, wanted in zip(gates, work.gates):
            for got_site, wanted_site in zip(got, wanted):
                assert (got_site is None) == (wanted_site is None)
                if got_site is not None:
                    assert torch.equal(got_site[0], wanted_site[0, :, frame])


@needs_extension
@pytest.mark.parametrize("site", ["none", "hidden"])
@pytest.mark.parametrize("engine", ["HopStream", "EnhancerStream"])
def test_samples_in_give_the_samples_of_the_reference_out(engine, site):
    from dyncp_kernels.bench.engines import dyncp

    work = hop_workload(workload(site))
    assert work.expected.shape == (1, 256, FRAMES)
    assert work.expected[..., 2:].abs().max() > 0.01
    threads = torch.get_num_threads()
    run = getattr(dyncp, engine)(work, 1)
    torch.set_num_threads(threads)
    assert check_stream(run, work).max_error < 1e-5


@needs_extension
def test_an_engine_that_computes_something_else_is_not_correct():
    work, other = workload("hidden"), workload("hidden", density=0.6)
    run = prepared("dyncp gated", "stream", other)
    assert not check_stream(run, work).correct
    run._out.fill_(np.nan)
    run._step = lambda frame, out: None
    assert check_stream(run, work).max_error is None


def test_macs_are_those_of_the_masks_in_use():
    everything = workload("output", density=1.0)
    missing = 16 * 24  # the frame without gates at one block
    assert everything.macs_per_frame == pytest.approx(macs_per_frame(everything.config) - missing / FRAMES)
