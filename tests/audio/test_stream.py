import threading
import warnings

import numpy as np
import pytest
import torch

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.audio import StreamingEnhancer, enhance
from dyncp_kernels.engine import PackedModel
from dyncp_kernels.nn import ConvFSENet


def small_net(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = {"channels": 16, "hidden": 24, "stacks": 1, "site": "output", **overrides}
    model = ConvFSENet(**settings)
    for block in model.blocks:
        if hasattr(block.gate, "expand"):
            torch.nn.init.normal_(block.gate.expand.weight, std=2.0)
            torch.nn.init.normal_(block.gate.expand.bias, std=0.3)
    return model.eval()


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(enhancer, signal, sizes):
    parts, start = [], 0
    for size in sizes:
        parts.append(enhancer.push(signal[..., start : start + size]))
        start += size
    parts.append(enhancer.push(signal[..., start:]))
    parts.append(enhancer.flush())
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
@pytest.mark.parametrize("pooling", ["average", "exponential", "window"])
def test_stream_equals_offline_after_the_latency(site, pooling):
    model = small_net(site=site, gate_pooling=pooling).fold()
    signal = noise(9000)
    enhancer = StreamingEnhancer(model)
    streamed = run(enhancer, signal, [1, 255, 700, 0, 256, 2048])
    assert enhancer.latency == 256
    assert len(streamed) == len(signal) + enhancer.latency
    assert np.abs(streamed[256:] - enhance(model, signal)).max() < 1e-4


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 512, 1000])
@pytest.mark.parametrize("size", [1, 100, 256, 600])
def test_any_length_in_any_pieces(length, size):
    model = small_net().fold()
    signal = noise(length, seed=length)
    streamed = run(StreamingEnhancer(model), signal, [size] * (min(length, 600) // size))
    assert streamed.shape == (length + 256,)
    assert np.abs(streamed[256:] - enhance(model, signal)).max(initial=0.0) < 1e-4


def test_random_pieces_give_the_same_samples():
    model = small_net().fold()
    signal = noise(6000)
    whole = run(StreamingEnhancer(model), signal, [])
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert np.abs(run(StreamingEnhancer(model), signal, rng.integers(0, 900, 12)) - whole).max() < 1e-6


def test_push_returns_whole_hops_as_soon_as_they_are_complete():
    enhancer = StreamingEnhancer(small_net())
    lengths = [len(enhancer.push(noise(size))) for size in (255, 1, 100, 412, 0, 256)]
    assert lengths == [0, 256, 0, 512, 0, 256]
    assert enhancer.frames == 4
    assert len(enhancer.flush()) == 256


def test_result_up_to_a_sample_does_not_depend_on_later_samples():
    model = small_net().fold()
    first, second = noise(4096), noise(4096)
    second[2048:] = 0.5
    outputs = [StreamingEnhancer(model).push(signal) for signal in (first, second)]
    assert np.array_equal(outputs[0][:2048], outputs[1][:2048])
    assert not np.allclose(outputs[0][2048:], outputs[1][2048:])


def test_streams_run_side_by_side_without_mixing():
    model = small_net().fold()
    signals = noise(3, 5000)
    together = run(StreamingEnhancer(model, streams=3), signals, [333, 1500])
    assert together.shape == (3, 5256)
    for signal, result in zip(signals, together):
        assert np.abs(run(StreamingEnhancer(model), signal, [333, 1500]) - result).max() < 1e-5
    # Whole hops go another way.
    whole = run(StreamingEnhancer(model, streams=3), signals, [512])
    assert np.abs(whole - together).max() < 1e-5
    as_tensor = StreamingEnhancer(model, streams=3).push(torch.from_numpy(signals[:, :4096].copy()))
    assert np.array_equal(as_tensor.numpy(), whole[:, :4096])


def test_reset_and_flush_both_start_anew():
    enhancer = StreamingEnhancer(small_net())
    signal = noise(3000)
    first = run(enhancer, signal, [700])
    assert np.array_equal(run(enhancer, signal, [700]), first)
    enhancer.push(noise(1234, seed=5))
    enhancer.reset()
    assert np.array_equal(run(enhancer, signal, [700]), first)


def test_many_threads_share_one_model():
    model = small_net().fold()
    signals = noise(6, 6000)
    expected = [enhance(model, signal) for signal in signals]
    errors = [None] * len(signals)

    def work(index):
        try:
            streamed = run(StreamingEnhancer(model), signals[index], [100 + 37 * index] * 20)
            errors[index] = float(np.abs(streamed[256:] - expected[index]).max())
        except Exception as error:  # a thread's own failure must reach the test
            errors[index] = error

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(signals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, float) and error < 1e-4 for error in errors), errors


def test_kind_and_dtype_come_back_from_push_and_flush():
    enhancer = StreamingEnhancer(small_net())
    for signal in (noise(600).astype(np.float64), torch.from_numpy(noise(600)), torch.from_numpy(noise(1, 600))):
        for part in (enhancer.push(signal), enhancer.flush()):
            assert type(part) is type(signal)
            assert part.dtype == signal.dtype
            assert part.ndim == signal.ndim
    assert enhancer.flush().shape == (1, 256)


@pytest.mark.parametrize("site", ["output", "hidden", "both"])
def test_gates_equal_the_offline_ones(site):
    model = small_net(site=site).fold()
    signal = noise(5000)
    _, offline = enhance(model, signal, return_gates=True)
    enhancer = StreamingEnhancer(model)
    pushed = [enhancer.push(part, return_gates=True)[1] for part in np.split(signal, [100, 1000, 1050, 4000])]
    pushed.append(enhancer.flush(return_gates=True)[1])
    for index, block in enumerate(offline):
        for name in ("hidden", "out"):
            parts = [getattr(gates[index], name) for gates in pushed if gates]
            whole = getattr(block, name)
            if whole is None:
                assert parts == [None] * len(parts)
            else:
                assert (torch.cat(parts, -1) != whole).float().mean() < 0.002  # a score may round across 0


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asking_for_gates_does_not_change_the_samples(streams, dtype):
    model = small_net(site="both").to(dtype)
    signal = torch.from_numpy(noise(streams, 1500)).to(dtype).T.contiguous().T  # rows that are not in one piece
    plain, asking = StreamingEnhancer(model, streams=streams), StreamingEnhancer(model, streams=streams)
    for part in signal.split([256, 512, 100, 412, 220], dim=-1):
        samples, gates = asking.push(part, return_gates=True)
        assert torch.equal(plain.push(part), samples)
        assert all(block.hidden.shape == (streams, 24, samples.shape[-1] // 256) for block in gates)
    assert torch.equal(plain.flush(), asking.flush())


def test_budget_may_change_while_streaming():
    model = small_net()
    model.calibration = [(0.0, -1e3), (1.0, 1e3)]
    enhancer = StreamingEnhancer(model, budget=1.0)
    _, gates = enhancer.push(noise(512), return_gates=True)
    assert all(block.out.all() for block in gates)
    enhancer.budget = 0.0
    _, gates = enhancer.push(noise(512), return_gates=True)
    assert not any(block.out.any() for block in gates)
    with pytest.raises(ValueError, match="budget must be between 0 and 1"):
        enhancer.budget = 2.0
    assert enhancer.budget == 0.0


@pytest.mark.parametrize("kind", ["numpy", "read-only", "strided", "torch", "row", "float64", "gates"])
def test_whole_hops_are_enhanced_as_in_pieces_of_any_kind(kind):
    model = small_net().fold()
    signal = noise(256 * 12)
    pieces = StreamingEnhancer(model)
    expected = run(pieces, signal, [100, 300])
    enhancer = StreamingEnhancer(model)
    parts = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Hops, then pieces, then hops again.
        for start, end in ((0, 256), (256, 1024), (1024, 1100), (1100, 1280), (1280, 1536), (1536, 1536), (1536, 3072)):
            piece = signal[start:end]
            given = {
                "read-only": np.frombuffer(piece.tobytes(), np.float32),
                "strided": np.repeat(piece, 2)[::2],
                "torch": torch.from_numpy(piece),
                "row": torch.from_numpy(piece)[None],
                "float64": piece.astype(np.float64),
            }.get(kind, piece)
            part = enhancer.push(given, return_gates=True)[0] if kind == "gates" else enhancer.push(given)
            assert type(part) is type(given)
            assert part.dtype == given.dtype
            assert part.ndim == given.ndim
            parts.append(np.asarray(part).reshape(-1))
    assert enhancer.frames == 12
    parts.append(np.asarray(enhancer.flush()).reshape(-1))
    np.testing.assert_array_equal(np.concatenate(parts).astype(np.float32), expected)


def test_a_refused_hop_changes_nothing():
    model = small_net().fold()
    signal = noise(1024)
    enhancer = StreamingEnhancer(model)
    parts = []
    for start in range(0, 1024, 256):
        hop = signal[start : start + 256]
        for bad in (np.nan, np.inf, -np.inf):
            with pytest.raises(ValueError, match="samples must be finite"):
                enhancer.push(np.where(np.arange(256) == 255, np.float32(bad), hop))
        parts.append(enhancer.push(hop))
    np.testing.assert_array_equal(np.concatenate(parts), StreamingEnhancer(model).push(signal))


def test_a_refused_push_changes_nothing():
    model = small_net().fold()
    signal = noise(3000)
    enhancer, plain = StreamingEnhancer(model), StreamingEnhancer(model)
    first = enhancer.push(signal[:1000])
    bad = signal[1000:].copy()
    bad[5] = np.nan
    with pytest.raises(ValueError, match=r"StreamingEnhancer.push: samples must be finite \(got NaN or infinity\)"):
        enhancer.push(bad)
    rest = np.concatenate([first, enhancer.push(signal[1000:])])
    assert np.array_equal(rest, np.concatenate([plain.push(signal[:1000]), plain.push(signal[1000:])]))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"must be causal with gates per frame \(got causal=False, gate_per='frame'\)"):
        StreamingEnhancer(small_net(causal=False))
    with pytest.raises(ValueError, match="gate_per='utterance'"):
        StreamingEnhancer(small_net(gate_per="utterance"))
    with pytest.raises(ValueError, match="must be in eval mode"):
        StreamingEnhancer(small_net().train())
    with pytest.raises(ValueError, match=r"streams must be at least 1 \(got 0\)"):
        StreamingEnhancer(small_net(), streams=0)
    enhancer = StreamingEnhancer(small_net(), streams=2)
    with pytest.raises(ValueError, match=r"samples must be \(2, N\) \(got \(100,\)\)"):
        enhancer.push(noise(100))
    with pytest.raises(ValueError, match=r"must be \(N,\) or \(batch, N\) \(got \(1, 2, 100\)\)"):
        enhancer.push(noise(1, 2, 100))
    with pytest.raises(TypeError, match=r"must be float32 or float64 \(got int16\)"):
        enhancer.push(np.zeros((2, 100), np.int16))


def test_a_float32_model_runs_on_the_engine_and_a_float64_one_on_its_own_step():
    if not extension_loaded():
        pytest.skip("the native extension is not built")
    model = small_net().fold()
    signal = noise(4000)
    offline = enhance(model, signal)
    fast, slow = StreamingEnhancer(model), StreamingEnhancer(small_net().double())
    assert [type(e._hops).__name__ for e in (fast, slow)] == ["_EngineHops", "_ModelHops"]
    for enhancer in (fast, slow):
        assert np.abs(run(enhancer, signal, [333, 777])[256:] - offline).max() < 1e-4


def test_the_models_own_step_gives_the_same_gates_as_the_engine():
    signal = noise(4000)
    (_, fast), (_, slow) = (
        StreamingEnhancer(model, streams=1).push(signal, return_gates=True)
        for model in (small_net(site="both"), small_net(site="both").double())
    )
    for a, b in zip(fast, slow):
        assert torch.equal(a.hidden, b.hidden)
        assert torch.equal(a.out, b.out)


def test_enhancers_share_one_packed_model():
    if not extension_loaded():
        pytest.skip("the native extension is not built")
    model = small_net()
    packed = PackedModel(model, "float16")
    signal = noise(3000)
    first, second = StreamingEnhancer(packed), StreamingEnhancer(packed)
    parts = [(first.push(signal[i : i + 500]), second.push(-signal[i : i + 500])) for i in range(0, 3000, 500)]
    expected = StreamingEnhancer(model, precision="float16").push(signal)
    np.testing.assert_array_equal(np.concatenate([a for a, _ in parts]), expected)
    np.testing.assert_allclose(np.concatenate([b for _, b in parts]), -expected, atol=1e-6)


def test_reduced_precision_without_the_engine_is_refused():
    with pytest.raises(ValueError, match=r"precision must be 'float32' without the engine \(got 'int8'\)"):
        StreamingEnhancer(small_net().double(), precision="int8")


@pytest.mark.parametrize("length", [100, 256, 700])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_samples_that_would_overflow_are_refused_and_change_nothing(length, kind):
    model = small_net()
    stream, other = StreamingEnhancer(model), StreamingEnhancer(model)
    loud = torch.full((length,), 1e18)
    with pytest.raises(ValueError, match=r"within 1e\+06 times full scale \(got 1e\+18\)"):
        stream.push(loud.numpy() if kind == "numpy" else loud)
    samples = torch.randn(1024)
    assert torch.equal(stream.push(samples), other.push(samples))
    assert torch.isfinite(stream.push(torch.full((512,), 1e6))).all()
