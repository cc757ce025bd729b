"""The streaming engine from Python: equal to the folded network in every geometry, precision and call pattern."""

import copy
import threading
import time

import pytest
import torch

from dyncp_kernels import _extension
from dyncp_kernels import engine as engine_module
from dyncp_kernels.audio import enhance
from dyncp_kernels.engine import PRECISIONS, PackedModel, StreamEngine, folded_bytes
from dyncp_kernels.nn import ConvFSENet

pytestmark = pytest.mark.skipif(not _extension.extension_loaded(), reason="the native extension is not built")

GEOMETRIES = {
    "paper": {},
    "odd": {"channels": 50, "hidden": 70, "kernel_size": 2, "dilations": (1, 3), "stacks": 2, "gate_hidden": 5},
    "one tap": {"channels": 24, "hidden": 33, "kernel_size": 1, "stacks": 1, "gate_hidden": 20},
    "five taps": {"channels": 130, "hidden": 40, "kernel_size": 5, "stacks": 1, "dilations": (2, 1, 8)},
}


def network(seed=0, **config):
    """A folded network with lively BatchNorms whose gates keep about a quarter of the channels."""
    torch.manual_seed(seed)
    model = ConvFSENet(**{"n_fft": 128, "hop": 64, "bins": 65, **config})
    for block in model.blocks:
        for norm in (block.norm_in, block.norm_dw):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.uniform_(0.5, 1.5)
            norm.bias.data.normal_(0, 0.3)
        if hasattr(block.gate, "expand"):
            block.gate.expand.weight.data.normal_(0, 0.5)
            block.gate.expand.bias.data.normal_(-0.6, 1)
        elif block.gate is not None:
            block.gate.score.data.normal_(-0.6, 1)
    return model.eval().fold()


def features(folded, frames=20, seed=1):
    return torch.rand(frames, folded.config.bins, generator=torch.Generator().manual_seed(seed))


def offline(folded, frames, shift=0.0):
    mask, gates = folded(frames.T[None], shift, return_gates=True)
    return mask[0].T, gates


@pytest.fixture(params=_extension.supported_instruction_sets() or ["none"])
def instruction_set(request):
    before = _extension.instruction_set()
    _extension.set_instruction_set(request.param)
    yield request.param
    _extension.set_instruction_set(before)


def assert_equals_offline(folded, shift=0.0, **engine_options):
    frames = features(folded)
    wanted, wanted_gates = offline(folded, frames, shift)
    engine = StreamEngine(folded, shift=shift, **engine_options)
    got, gates = engine.step_with_gates(frames)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    for used, expected in zip(gates, wanted_gates):
        for site, reference in zip(used, expected):
            assert (site is None) == (reference is None)
            if site is not None:
                assert torch.equal(site.T, reference[0].expand(-1, len(frames)))
    return gates


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_masks_and_gates_equal_the_folded_network(instruction_set, site, geometry):
    folded = network(site=site, **GEOMETRIES[geometry])
    for crossover in (0.0, 1.0) if site != "none" else (None,):
        assert_equals_offline(folded, hidden_crossover=crossover, out_crossover=crossover)


@pytest.mark.parametrize("pooling", ["average", "exponential", "window"])
@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_every_causal_pooling_and_activation(pooling, activation):
    config = {"site": "both", "gate_pooling": pooling, "gate_window": 5, "activation": activation, "stacks": 1}
    usage = torch.cat([s.float().mean()[None] for b in assert_equals_offline(network(**config)) for s in b])
    assert 0.1 < usage.mean() < 0.5


def test_static_gates():
    assert_equals_offline(network(site="both", gate_per="static", stacks=1))


@pytest.mark.parametrize("shift", [-100.0, -1.0, 1.0, 100.0])
@pytest.mark.parametrize("site", ["output", "hidden", "both"])
def test_a_shift_moves_the_usage_from_nothing_to_everything(site, shift):
    gates = assert_equals_offline(network(site=site), shift)
    if abs(shift) == 100:
        assert all(bool((s == (shift > 0)).all()) for block in gates for s in block if s is not None)


def test_the_shift_may_change_within_a_stream():
    folded = network(site="hidden", gate_pooling="window", gate_window=1, dilations=(1,), stacks=1, kernel_size=1)
    frames = features(folded)
    engine = StreamEngine(folded)
    low = engine.step(frames[:10])
    engine.shift = 2.0
    high = engine.step(frames[10:])
    torch.testing.assert_close(low, offline(folded, frames)[0][:10], atol=1e-5, rtol=0)
    torch.testing.assert_close(high, offline(folded, frames, 2.0)[0][10:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["none", "both"])
def test_a_chunk_equals_its_frames_and_a_reset_starts_anew(site):
    folded = network(site=site)
    frames = features(folded)
    engine = StreamEngine(folded)
    chunk = engine.step(frames)
    assert not torch.equal(engine.step(frames), chunk)
    engine.reset()
    single = torch.stack([engine.step(frame) for frame in frames])
    assert torch.equal(single, chunk)
    engine.reset()
    out = torch.empty_like(frames)
    assert engine.step(frames, out=out) is out
    assert torch.equal(out, chunk)
    assert engine.info["frames"] == len(frames)
    assert engine.step(frames[:0]).shape == (0, folded.config.bins)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_chunks_of_every_size_equal_their_frames_to_the_bit(instruction_set, site, precision):
    folded = network(site=site, **GEOMETRIES["five taps"])
    frames = features(folded, 64)
    # Near the usual density, so that some frames of a chunk read every row and others only kept ones.
    crossover = None if site == "none" else 0.25
    engine = StreamEngine(PackedModel(folded, precision), hidden_crossover=crossover, out_crossover=crossover)
    singles = [engine.step_with_gates(frame[None]) for frame in frames]
    engine.reset()
    for size in (2, 3, 5, 8, 1, 7, 4, 6, 11, 17):
        place = engine.info["frames"]
        mask, gates = engine.step_with_gates(frames[place : place + size])
        for t in range(size):
            assert torch.equal(mask[t], singles[place + t][0][0])
            for block, single in zip(gates, singles[place + t][1]):
                assert all(a is b or torch.equal(a[t], b[0]) for a, b in zip(block, single))
    assert engine.info["frames"] == len(frames)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_a_pause_between_calls_does_not_change_the_masks(instruction_set, site, size):
    folded = network(site=site, stacks=1)
    parts = features(folded, 24).split(size)
    busy, live = StreamEngine(folded), StreamEngine(folded)
    wanted = [busy.step(part) for part in parts]
    for part, mask in zip(parts, wanted):
        time.sleep(0.002)  # now the engine takes it that other work has used the caches
        assert torch.equal(live.step(part), mask)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_in_a_chunk_a_nan_column_reaches_only_frames_that_keep_its_channel(instruction_set, precision):
    folded = network(site="hidden", stacks=1, dilations=(1,), gate_window=1)
    frames = features(folded, 8)
    engine = StreamEngine(PackedModel(folded, precision), hidden_crossover=1.0)
    kept = engine.step_with_gates(frames)[1][0].hidden
    channel = int((kept.sum(0) - 4).abs().argmin())
    assert 0 < kept[:, channel].sum() < len(frames)
    folded.blocks[0].w_out[:, channel] = torch.nan
    mask = StreamEngine(PackedModel(folded, precision), hidden_crossover=1.0).step(frames)
    assert torch.equal(mask.isnan().any(1), kept[:, channel])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_streams_in_step_equal_each_of_them_alone_to_the_bit(instruction_set, site, precision):
    packed = PackedModel(network(site=site, **GEOMETRIES["five taps"]), precision)
    # Near the usual density, so that some streams of a call read every row and others only kept ones.
    crossover = None if site == "none" else 0.25
    options = {"hidden_crossover": crossover, "out_crossover": crossover}
    frames = torch.stack([features(packed, 16, seed) for seed in range(11)])
    together = StreamEngine(packed, streams=len(frames), **options)
    counts = (1, 3, 1, 9, 2)  # of frames in a call
    calls = [together.step_with_gates(part.contiguous()) for part in frames.split(counts, 1)]
    masks = torch.cat([mask for mask, _ in calls], 1)
    for index, own in enumerate(frames):
        mask, gates = StreamEngine(packed, **options).step_with_gates(own)
        assert torch.equal(masks[index], mask)
        for block, *of_calls in zip(gates, *(given for _, given in calls)):
            for expected, *parts in zip(block, *of_calls):
                assert expected is parts[0] is None or torch.equal(torch.cat([p[index] for p in parts]), expected)
    assert together.info["frames"] == frames.shape[1]
    assert together.info["streams"] == len(frames)


def test_streams_in_step_do_not_depend_on_the_number_of_threads(with_threads):
    packed = PackedModel(network(site="both", stacks=1))
    samples = torch.randn(37, 5 * packed.config.hop)
    one, two = with_threads((1, 2), lambda: StreamEngine(packed, streams=37).push_hop(samples))
    assert torch.equal(one, two)
    assert torch.equal(one, torch.stack([StreamEngine(packed).push_hop(signal) for signal in samples]))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_in_one_stream_reaches_no_other(instruction_set, precision):
    packed = PackedModel(network(site="both", stacks=1), precision)
    frames = torch.stack([features(packed, 3, seed) for seed in range(8)])
    wanted = StreamEngine(packed, streams=8).step(frames)
    frames[2, 1] = torch.nan
    got = StreamEngine(packed, streams=8).step(frames)
    assert torch.equal(got.isnan().any(-1).nonzero(), torch.tensor([[2, 1]]))
    others = torch.arange(8) != 2
    assert torch.equal(got[others], wanted[others])


def test_streams_next_to_each_other_may_go_in_a_step_of_their_own():
    packed = PackedModel(network(site="hidden", stacks=1))
    frames = torch.stack([features(packed, 2, seed) for seed in range(6)])
    wanted = StreamEngine(packed, streams=6).step(frames)
    state = StreamEngine(packed, streams=6)._state
    step = torch.ops.dyncp.stream_step
    parts = [step(packed.tensor, state[a:b], frames[a:b]) for a, b in ((0, 1), (3, 6), (1, 3))]
    assert torch.equal(torch.cat([parts[0], parts[2], parts[1]]), wanted)
    torch.ops.dyncp.stream_reset_(packed.tensor, state[2:4])
    assert torch.equal(step(packed.tensor, state[2:4], frames[2:4]), wanted[2:4])


def test_streams_that_come_go_and_are_late_equal_each_of_them_alone(with_threads):
    packed = PackedModel(network(site="both", stacks=1))
    signals = torch.randn(23, 12 * packed.config.hop, generator=torch.Generator().manual_seed(3))

    def run():
        engine, chance = StreamEngine(packed, streams=len(signals)), torch.Generator().manual_seed(4)
        heard = [0] * len(signals)
        enhanced, gates = ([[] for _ in signals] for _ in range(2))
        for turn in range(9):
            due = [stream for stream in torch.randperm(23, generator=chance).tolist() if (stream + turn) % 3]
            given = torch.stack([signals[stream, heard[stream] :][: packed.config.hop] for stream in due])
            if turn % 2:
                results = engine.push_hop(given, only=torch.tensor(due))
            else:
                results, decided = engine.push_hop_with_gates(given, only=due)
            for place, stream in enumerate(due):
                heard[stream] += packed.config.hop
                enhanced[stream].append(results[place])
                gates[stream].append(None if turn % 2 else decided[0].hidden[place, 0])
        return [torch.cat(parts) for parts in enhanced], gates

    (one, gates), (two, _) = with_threads((1, 2), run)
    for stream, signal in enumerate(signals):
        alone, decided = StreamEngine(packed).push_hop_with_gates(signal[: len(one[stream])])
        assert torch.equal(one[stream], alone)
        assert torch.equal(two[stream], alone)
        for frame, hidden in enumerate(gates[stream]):
            assert hidden is None or torch.equal(hidden, decided[0].hidden[frame])


def test_some_streams_step_and_start_anew_while_the_others_stay():
    packed = PackedModel(network(site="hidden", stacks=1))
    frames = torch.stack([features(packed, 4, seed) for seed in range(5)])
    engine = StreamEngine(packed, streams=5)
    whole = StreamEngine(packed, streams=5).step(frames)
    first = engine.step(frames[:, :2].contiguous())
    engine.reset(only=(3, 1))
    out = torch.empty(2, 65)
    assert engine.step(frames[[1, 3], 0], out, only=[1, 3]) is out
    assert torch.equal(out, first[[1, 3], 0])
    mask, _ = engine.step_with_gates(frames[[4, 0], 2:], only=[4, 0])
    assert torch.equal(mask, whole[[4, 0], 2:])
    assert engine.step(frames[:0], only=[]).shape == (0, 4, 65)
    numpy = engine.push_hop(torch.zeros(1, 64).numpy(), only=[2])
    assert numpy.shape == (1, 64)


@pytest.mark.parametrize(
    ("streams", "only", "message"),
    [
        (3, [0, 3], r"only must name different streams from 0 to 2 \(got 3 at place 1\)"),
        (3, [-1], r"from 0 to 2 \(got -1 at place 0\)"),
        (3, [1, 2, 1], r"from 0 to 2 \(got 1 at place 2\)"),
        (None, [0], r"only needs a state of shape \(streams, bytes\)"),
        (3, torch.tensor([0.0]), "only must be a contiguous 1-D int64 tensor on the CPU"),
        (3, torch.tensor([[0]]), "only must be a contiguous 1-D int64 tensor on the CPU"),
    ],
)
def test_streams_that_are_not_there_are_refused(streams, only, message):
    folded = network(stacks=1)
    engine = StreamEngine(folded, streams=streams)
    for call in (engine.step, engine.push_hop, lambda *_, only: engine.reset(only=only)):
        with pytest.raises(RuntimeError, match=message):
            call(torch.zeros(len(only), 65), only=only)
    if streams == 3:
        with pytest.raises(RuntimeError, match=r"features must have shape \(2, frames, 65\) or \(2, 65\)"):
            engine.step(torch.zeros(3, 65), only=[0, 1])


def test_streams_in_threads_share_one_model_without_mixing():
    folded = network(site="hidden")
    packed = PackedModel(folded)
    inputs = [features(folded, 200, seed) for seed in range(4)]
    wanted = [StreamEngine(packed).step(frames) for frames in inputs]
    results = {}

    def work(index):
        engine = StreamEngine(packed)
        results[index] = torch.stack([engine.step(frame) for frame in inputs[index]])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, reference in enumerate(wanted):
        assert torch.equal(results[index], reference)


def test_a_copied_state_continues_the_stream():
    folded = network(site="both")
    frames = features(folded)
    engine = StreamEngine(folded)
    engine.step(frames[:10])
    twin = StreamEngine(engine.model)
    twin._state.copy_(engine._state)
    assert torch.equal(engine.step(frames[10:]), twin.step(frames[10:]))


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 256), (256, 64), (128, 64)])
@pytest.mark.parametrize("site", ["none", "hidden"])
def test_samples_to_samples_equal_offline_enhancement(instruction_set, site, n_fft, hop):
    folded = network(site=site, n_fft=n_fft, hop=hop, bins=n_fft // 2 + 1)
    samples = torch.randn(hop * 30, generator=torch.Generator().manual_seed(2)) * 0.1
    engine = StreamEngine(folded)
    padded = torch.cat([samples, torch.zeros(engine.latency)])
    got = engine.push_hop(padded)[engine.latency :]
    torch.testing.assert_close(got, enhance(folded, samples), atol=1e-4, rtol=0)
    engine.reset()
    hops = torch.cat([engine.push_hop(part) for part in padded.split(hop)])[engine.latency :]
    assert torch.equal(hops, got)
    engine.reset()
    in_place = padded.clone()
    engine.push_hop(in_place, out=in_place)
    assert torch.equal(in_place[engine.latency :], got)
    engine.reset()
    _, gates = engine.push_hop_with_gates(padded)
    if site == "hidden":
        assert gates[0].hidden.shape == (len(padded) // hop, 256)
    engine.reset()
    assert (engine.push_hop(padded.numpy())[engine.latency :] == got.numpy()).all()


def test_silence_and_loud_samples_stay_finite():
    folded = network(site="both")
    engine = StreamEngine(folded)
    assert engine.push_hop(torch.zeros(64 * 50)).abs().max() == 0
    assert engine.push_hop(torch.full((64 * 50,), 1e6)).isfinite().all()


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("bfloat16", 1e-2), ("int8", 2e-2)])
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_weights_of_fewer_bits_stay_close(instruction_set, site, precision, tolerance):
    # Static gates, so that no gate flips on a rounded score.
    folded = network(site=site, gate_per="static")
    frames = features(folded)
    wanted, _ = offline(folded, frames)
    for crossover in (0.0, 1.0):
        engine = StreamEngine(folded, precision, hidden_crossover=crossover, out_crossover=crossover)
        got = engine.step(frames)
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)
        assert not torch.equal(got, wanted)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_weights_of_24_bits_round_as_little_as_float32(instruction_set, site, geometry):
    folded = network(site=site, gate_per="static", **GEOMETRIES[geometry])
    frames = features(folded)
    exact, _ = offline(copy.deepcopy(folded).double(), frames.double())
    for crossover in (0.0, 1.0):
        options = {"hidden_crossover": crossover, "out_crossover": crossover}
        error = {p: (StreamEngine(folded, p, **options).step(frames) - exact).abs() for p in ("float32", "int24")}
        assert error["int24"].max() < 1e-6
        assert error["int24"].mean() < 1.5 * error["float32"].mean()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
@pytest.mark.parametrize("size", [1e-20, 1.0, 100.0])
def test_weights_are_rounded_to_8_bits_and_activations_at_most_to_16(instruction_set, site, geometry, size):
    folded = network(site=site, **GEOMETRIES[geometry])
    rounded = copy.deepcopy(folded)
    for module in (rounded, *rounded.blocks):
        for name in ("front_weight", "back_weight", "w_in", "w_out"):
            if hasattr(module, name):
                weights = getattr(module, name)
                scale = (weights.abs().amax(1, keepdim=True) / 0x7F000000).double() * 2**24
                weights.copy_(scale * (weights / scale).round())
    frames = size * features(folded)
    masks, gates = StreamEngine(folded, "int8").step_with_gates(frames)
    expected, expected_gates = StreamEngine(rounded).step_with_gates(frames)
    for site_gates, wanted in zip(gates, expected_gates):
        for own, other in zip(site_gates, wanted):
            assert own is other is None or torch.equal(own, other)
    # Logits grow with the features, and with them what sums in float32 lose, or activations of 16 bits.
    bound = 5e-6 * max(8, size) if instruction_set in ("avx512vnni", "neondot") else 5e-7 * max(1, size)
    torch.testing.assert_close(masks, expected, atol=bound, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nan_in_the_features_is_nan_in_the_mask_until_the_stream_is_reset(instruction_set, precision):
    engine = StreamEngine(network(stacks=1), precision)
    frame = torch.rand(engine.config.bins)
    expected = engine.step(frame)
    engine.step(frame.index_fill(0, torch.tensor(3), torch.nan))
    assert engine.step(frame).isnan().all()
    engine.reset()
    assert torch.equal(engine.step(frame), expected)


@pytest.mark.parametrize("pooling", ["average", "exponential", "window"])
def test_gates_recover_from_a_frame_of_nan(instruction_set, pooling):
    folded = network(site="both", stacks=1, gate_pooling=pooling, gate_window=4)
    frames = features(folded, 400)
    _, expected = StreamEngine(folded).step_with_gates(frames)
    frames[3, 5] = float("nan")
    mask, gates = StreamEngine(folded).step_with_gates(frames)
    assert mask.isnan().any(-1).nonzero().flatten().tolist() == [3]
    for site, wanted in zip(gates[0] + gates[-1], expected[0] + expected[-1]):
        assert (site[-1] == wanted[-1]).float().mean() > 0.9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_a_sample_that_is_no_number_or_absurdly_loud_counts_as_silence(instruction_set, value):
    folded = network(site="both", stacks=1)
    samples = torch.randn(20 * folded.config.hop)
    samples[70] = 0.0
    expected = StreamEngine(folded).push_hop(samples)
    samples[70] = value
    assert torch.equal(StreamEngine(folded).push_hop(samples), expected)


def test_gates_of_frames_in_any_form():
    folded = network(site="both", stacks=1)
    frames = features(folded, 6)
    mask, gates = StreamEngine(folded).step_with_gates(frames)
    one_mask, one = StreamEngine(folded).step_with_gates(frames[0])
    assert torch.equal(one_mask, mask[0])
    assert torch.equal(one[0].hidden[0], gates[0].hidden[0])
    with pytest.raises(RuntimeError, match=r"features must be .* \(got float32 of shape \[6, 65\], not contiguous\)"):
        StreamEngine(folded).step_with_gates(frames.t().contiguous().t())
    with pytest.raises(RuntimeError, match=r"samples must be .* \(got float64 of shape \[64\]\)"):
        StreamEngine(folded).push_hop(torch.zeros(64, dtype=torch.float64))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16_weights_that_share_words_round_no_worse_than_alone(geometry):
    folded = network(gate_per="static", **GEOMETRIES[geometry])
    frames = features(folded)
    exact, _ = offline(folded, frames)
    rounded = copy.deepcopy(folded)
    for module in (rounded, *rounded.blocks):
        for name in ("front_weight", "back_weight", "w_in", "w_out"):
            if hasattr(module, name):
                getattr(module, name).copy_(getattr(module, name).bfloat16())
    alone = (offline(rounded, frames)[0] - exact).square().mean().sqrt()
    together = (StreamEngine(folded, "bfloat16").step(frames) - exact).square().mean().sqrt()
    assert together < 1.3 * alone


def test_one_frame_is_the_same_in_any_form_and_wrong_ones_are_refused():
    folded = network(site="both", stacks=1)
    frame = features(folded)[0]
    hop = folded.config.hop
    wanted = StreamEngine(folded).step(frame[None].repeat(2, 1))[0]
    doubled = torch.stack([frame, frame], 1)
    for given in (frame, frame[None], frame.double().float().requires_grad_(), torch.nn.Parameter(frame)):
        assert torch.equal(StreamEngine(folded).step(given).flatten(), wanted)
        out = torch.full_like(given, -1).detach()
        assert StreamEngine(folded).step(given, out) is out
        assert torch.equal(out.flatten(), wanted)
    twin = copy.deepcopy(engine := StreamEngine(folded))
    engine.step(frame)
    assert torch.equal(twin.step(frame), wanted)
    for wrong in (doubled[:, 0], frame.double(), frame[:-1], frame[:, None], frame[None, None]):
        with pytest.raises(RuntimeError, match="stream_step: features must"):
            engine.step(wrong)
    for wrong in (doubled[:, 0], frame.double(), frame[None], frame[:-1].clone()):
        with pytest.raises(RuntimeError, match="stream_step_out: mask must"):
            engine.step(frame, wrong)
    for wrong in (torch.zeros(hop, 2)[:, 0], torch.zeros(1, hop), torch.zeros(hop, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="stream_enhance: samples must"):
            engine.push_hop(wrong)


def test_numpy_samples_are_written_to_a_given_tensor():
    folded = network(site="both", stacks=1)
    samples = torch.randn(folded.config.hop)
    out = torch.zeros_like(samples)
    returned = StreamEngine(folded).push_hop(samples.numpy(), out)
    assert torch.equal(out, StreamEngine(folded).push_hop(samples))
    assert torch.equal(torch.from_numpy(returned), out)


@pytest.mark.skipif(engine_module._step is None, reason="built without Python's headers")
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_short_way_and_the_ops_give_the_same(count):
    folded = network(site="both", stacks=1)
    frames, samples = features(folded, count), torch.randn(count * folded.config.hop)
    for short, op, values in (
        (engine_module._step, torch.ops.dyncp.stream_step, frames),
        (engine_module._enhance, torch.ops.dyncp.stream_enhance, samples),
    ):
        one, other = StreamEngine(folded), StreamEngine(folded)
        assert torch.equal(
            short(one._packed, one._state, values, None, 0.5), op(other._packed, other._state, values, 0.5)
        )
        out = torch.empty_like(values)
        assert short(one._packed, one._state, values, out, 0.5) is out
        assert torch.equal(out, op(other._packed, other._state, values, 0.5))
        assert short(one._packed, one._state, values.double(), None, 0.5) is None


def test_the_short_way_refuses_what_is_no_shift():
    engine = StreamEngine(network(stacks=1))
    engine.shift = "more"
    with pytest.raises(RuntimeError, match="argument 'shift'"):
        engine.step(torch.rand(engine.config.bins))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("crossover", [0.0, 1.0])
@pytest.mark.parametrize("site", ["output", "hidden", "both"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_in_pruned_rows_never_leaks(instruction_set, site, crossover, precision, poison):
    folded = network(site=site, gate_per="static", stacks=1, channels=40, hidden=72)
    frames = features(folded)
    options = {"hidden_crossover": crossover, "out_crossover": crossover}
    clean = StreamEngine(folded, precision, **options).step(frames)
    for block in folded.blocks:
        gates = block.split_gates((block.gate.score > 0)[None])
        if gates.hidden is not None:
            pruned = ~gates.hidden[0]
            assert pruned.any()
            for name in ("w_in", "b_in", "w_dw", "b_dw"):
                getattr(block, name)[pruned] = poison
            block.w_out[:, pruned] = poison
        if gates.out is not None:
            pruned = ~gates.out[0]
            assert pruned.any()
            block.w_out[pruned] = poison
            block.b_out[pruned] = poison
    poisoned = StreamEngine(folded, precision, **options).step(frames)
    # Weights that share a word, and integers that share a scale with pruned columns, are rounded with these in view.
    rounding = {"int8": 5e-3, "bfloat16": 2e-3, "int24": 1e-6}.get(precision, 0)
    torch.testing.assert_close(poisoned, clean, atol=rounding, rtol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_hidden_channels_that_open_easily_are_packed_side_by_side(precision):
    folded = network(site="both", stacks=1)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(1))
    shuffled = copy.deepcopy(folded)
    for block in shuffled.blocks:
        for name in ("w_in", "b_in", "w_dw", "b_dw"):
            getattr(block, name).copy_(getattr(block, name)[order])
        block.w_out.copy_(block.w_out[:, order])
        for part in (block.gate.expand.weight, block.gate.expand.bias):
            part.data[128:] = part.data[128:][order]
    given, other = StreamEngine(folded, precision), StreamEngine(shuffled, precision)
    # All that differs are the tables that say which channel is which.
    assert 0 < (given._packed != other._packed).sum() <= 3 * 256 * 4
    frames = features(folded)
    mask, gates = given.step_with_gates(frames)
    other_mask, other_gates = other.step_with_gates(frames)
    assert torch.equal(other_mask, mask)
    for mine, others in zip(gates, other_gates):
        assert torch.equal(others.hidden, mine.hidden[:, order])
        assert torch.equal(others.out, mine.out)


def test_crossovers_are_measured_reported_and_overridable():
    folded = network(site="both", stacks=1)
    measured = StreamEngine(folded).info
    assert 0.3 < measured["hidden_crossover"] <= 1
    assert 0.3 < measured["out_crossover"] <= 1
    again = StreamEngine(folded).info
    assert again["hidden_crossover"] == measured["hidden_crossover"]
    assert again["instruction_set"] == _extension.instruction_set()
    chosen = StreamEngine(folded, hidden_crossover=0.25, out_crossover=0.75).info
    assert (chosen["hidden_crossover"], chosen["out_crossover"]) == (0.25, 0.75)
    assert StreamEngine(folded, hidden_crossover=float("inf")).info["hidden_crossover"] > 1


def test_budget_uses_the_calibration():
    model = network(site="hidden")
    model.calibration = [(0.1, -2.0), (0.9, 2.0)]
    assert StreamEngine(model, budget=0.5).shift == pytest.approx(0.0)
    assert StreamEngine(model, budget=0.9).shift == pytest.approx(2.0)


def test_networks_that_look_ahead_are_refused():
    for config in ({"causal": False}, {"site": "hidden", "gate_per": "utterance"}):
        with pytest.raises(ValueError, match="causal network with gates per frame"):
            StreamEngine(ConvFSENet(**config).eval())


def test_wrong_arguments_are_named():
    folded = network(stacks=1)
    engine = StreamEngine(folded)
    other = StreamEngine(network(stacks=1, channels=64))
    bins = folded.config.bins
    with pytest.raises(ValueError, match=r"precision must be one of .*got 'float8'"):
        StreamEngine(folded, "float8")
    with pytest.raises(RuntimeError, match=r"must have shape \(frames, 65\) or \(65\) \(got shape \[1, 64\]\)"):
        engine.step(torch.rand(1, 64))
    with pytest.raises(RuntimeError, match=r"features must have shape .* \(got shape \[1, 1, 65\]\)"):
        engine.step(torch.rand(1, 1, bins))
    with pytest.raises(RuntimeError, match="features must be a contiguous float32 tensor"):
        engine.step(torch.rand(bins, 3).T)
    with pytest.raises(RuntimeError, match="features must be a contiguous float32 tensor"):
        engine.step(torch.rand(3, bins, dtype=torch.float64))
    for out in (torch.empty(2, bins), torch.empty(3 * bins)):
        with pytest.raises(RuntimeError, match="mask must have the shape of features"):
            engine.step(torch.rand(3, bins), out=out)
    with pytest.raises(RuntimeError, match=r"samples must have shape \(a multiple of 64\)"):
        engine.push_hop(torch.zeros(63))
    several = StreamEngine(folded, streams=3)
    for wrong in ((bins,), (3, 4, 5, bins), (2, bins), (2, 4, bins), (3, bins + 1)):
        with pytest.raises(RuntimeError, match=r"features must have shape \(3, frames, 65\) or \(3, 65\)"):
            several.step(torch.rand(wrong))
    for wrong in ((64,), (2, 64), (3, 63), (3, 1, 64)):
        with pytest.raises(RuntimeError, match=r"samples must have shape \(3, a multiple of 64\)"):
            several.push_hop(torch.rand(wrong))
    with pytest.raises(RuntimeError, match="state must be a contiguous uint8 tensor"):
        torch.ops.dyncp.stream_step(several._packed, several._state[::2], torch.rand(2, bins))
    with pytest.raises(RuntimeError, match=r"state must have shape \(bytes\) or \(streams, bytes\)"):
        torch.ops.dyncp.stream_step(several._packed, several._state[None], torch.rand(3, bins))
    for streams in (0, -1):
        with pytest.raises(ValueError, match=f"streams must be at least 1 \\(got {streams}\\)"):
            StreamEngine(folded, streams=streams)
        with pytest.raises(RuntimeError, match=f"streams must be at least 1 \\(got {streams}\\)"):
            torch.ops.dyncp.stream_state(several._packed, streams=streams)
    with pytest.raises(RuntimeError, match="state must belong to this packed model"):
        torch.ops.dyncp.stream_step(engine._packed, other._state, torch.rand(1, bins))
    with pytest.raises(RuntimeError, match="state must be a stream's state"):
        torch.ops.dyncp.stream_step(engine._packed, torch.zeros(4096, dtype=torch.uint8), torch.rand(1, bins))
    with pytest.raises(RuntimeError, match="packed must come from stream_pack"):
        torch.ops.dyncp.stream_step(engine._packed[:-64], engine._state, torch.rand(1, bins))
    damaged = engine._packed.clone()
    damaged[100] ^= 1
    with pytest.raises(RuntimeError, match="whole and unchanged"):
        torch.ops.dyncp.stream_state(damaged)
    with pytest.raises(RuntimeError, match="stream_pack: model file"):
        torch.ops.dyncp.stream_pack(torch.zeros(100, dtype=torch.uint8), "float32")


def test_a_transform_of_another_size_is_refused_but_frames_run():
    folded = network(n_fft=96, hop=48, bins=49)
    engine = StreamEngine(folded)
    torch.testing.assert_close(engine.step(features(folded)), offline(folded, features(folded))[0], atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError, match="n_fft must be a power of two"):
        engine.push_hop(torch.zeros(48))


def test_ops_pass_opcheck():
    folded = network(site="both", stacks=1)
    engine = StreamEngine(folded)
    packed, state = engine._packed, engine._state
    frames, samples = features(folded, 3), torch.randn(128)
    tests = ("test_schema", "test_faketensor")
    ops = torch.ops.dyncp
    torch.library.opcheck(ops.stream_step.default, (packed, state, frames, 0.5), test_utils=tests)
    torch.library.opcheck(ops.stream_enhance.default, (packed, state, samples, 0.5), test_utils=tests)
    mask = torch.empty_like(frames)
    gates = torch.empty(3, 3, 384, dtype=torch.bool)
    torch.library.opcheck(ops.stream_step_out.default, (packed, state, frames, 0.5, mask, gates), test_utils=tests)
    torch.library.opcheck(ops.stream_reset_.default, (packed, state), test_utils=tests)


def test_file_bytes_are_a_safetensors_file():
    safetensors = pytest.importorskip("safetensors.torch")
    folded = network(site="both")
    tensors = safetensors.load(folded_bytes(folded))
    assert torch.equal(tensors["blocks.2.w_out"], folded.blocks[2].w_out)
    assert torch.equal(tensors["blocks.0.gate.expand.bias"], folded.blocks[0].gate.expand.bias)
