import numpy as np
import pytest
import torch

from dyncp_kernels.audio import stft as transform
from dyncp_kernels.audio.stft import (
    StreamingAnalysis,
    StreamingSynthesis,
    apply_mask,
    features,
    frame_count,
    istft,
    stft,
    window,
)


def noise(*shape, dtype=torch.float32, seed=0):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 257, 511, 512, 513, 5000])
def test_inverse_returns_the_signal(length):
    signal = noise(2, length)
    back = istft(stft(signal), length)
    assert back.shape == signal.shape
    assert torch.allclose(back, signal, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (320, 160), (64, 8), (8, 4), (6, 2)])
def test_inverse_returns_the_signal_for_other_overlaps(n_fft, hop):
    signal = noise(777, dtype=torch.float64)
    assert torch.allclose(istft(stft(signal, n_fft, hop), 777, n_fft, hop), signal, rtol=0, atol=1e-12)


def test_frames_lie_where_the_framing_says():
    signal = noise(1000, dtype=torch.float64).numpy()
    spectrum = stft(torch.from_numpy(signal)).numpy()
    padded = np.concatenate([np.zeros(256), signal, np.zeros(600)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    assert spectrum.shape == (257, 5)
    for frame in range(5):  # frame i covers samples [(i - 1) * 256, (i + 1) * 256)
        expected = np.fft.rfft(padded[frame * 256 : frame * 256 + 512] * np.sqrt(hann))
        assert np.allclose(spectrum[:, frame], expected, atol=1e-10)


@pytest.mark.parametrize(("samples", "frames"), [(0, 1), (1, 2), (256, 2), (257, 3), (16000, 64)])
def test_frame_count(samples, frames):
    assert frame_count(samples) == frames
    assert stft(torch.zeros(samples)).shape == (257, frames)


def test_window_is_the_root_of_a_periodic_hann_and_a_copy():
    assert torch.allclose(window(512) ** 2, torch.hann_window(512, periodic=True), atol=1e-6)
    window(512).zero_()
    assert window(512).sum() > 0


def test_features_are_compressed_magnitudes():
    spectrum = torch.tensor([3.0 + 4.0j, 0.0])
    assert torch.allclose(features(spectrum), torch.tensor([(5 + 1e-9) ** 0.3, (1e-9) ** 0.3]))
    assert torch.allclose(features(spectrum, 1.0), torch.tensor([5.0, 1e-9]))


def test_mask_scales_and_keeps_the_phase():
    spectrum = stft(noise(1000))
    half = apply_mask(spectrum, torch.full(spectrum.shape, 0.5))
    assert torch.equal(half, spectrum * 0.5)
    with pytest.raises(ValueError, match=r"mask must have the spectrum's shape \(257, 5\) \(got \(257, 4\)\)"):
        apply_mask(spectrum, torch.ones(257, 4))


def test_gradients_reach_the_samples():
    signal = noise(1, 40, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: istft(stft(x, 16, 8) * 0.7, 40, 16, 8), signal)


def test_window_made_without_gradients_does_not_break_training():
    transform._window.cache_clear()
    with torch.inference_mode():
        stft(noise(1000))
    signal = noise(1000).requires_grad_()
    stft(signal).abs().sum().backward()
    assert torch.isfinite(signal.grad).all()


@pytest.mark.parametrize(("n_fft", "hop"), [(512, 256), (512, 128)])
@pytest.mark.parametrize("pieces", [[1] * 12, [3, 0, 4, 5], [12]])
def test_streaming_pair_equals_offline(n_fft, hop, pieces):
    signal = noise(2, 12 * hop)
    whole = stft(signal, n_fft, hop)
    analysis, synthesis = StreamingAnalysis(2, n_fft, hop), StreamingSynthesis(2, n_fft, hop)
    spectra = [analysis.push(part) for part in signal.split([n * hop for n in pieces], dim=-1)]
    assert torch.allclose(torch.cat(spectra, -1), whole[..., :12], rtol=0, atol=1e-6)
    output = torch.cat([synthesis.push(spectrum) for spectrum in spectra], -1)
    latency = n_fft - hop
    assert output.shape == signal.shape
    assert torch.allclose(output[:, latency:], signal[:, :-latency], rtol=0, atol=1e-6)
    assert output[:, :latency].abs().max() < 1e-6


def test_reset_forgets_the_signal():
    analysis, synthesis = StreamingAnalysis(), StreamingSynthesis()
    signal = noise(1, 1024)
    first = analysis.push(signal), synthesis.push(stft(signal))
    analysis.reset()
    synthesis.reset()
    assert torch.equal(analysis.push(signal), first[0])
    assert torch.equal(synthesis.push(stft(signal)), first[1])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"multiple of hop of at least 2 \* hop \(got n_fft=512, hop=200\)"):
        stft(torch.zeros(10), 512, 200)
    with pytest.raises(ValueError, match="at least 2"):
        StreamingAnalysis(1, 512, 512)
    with pytest.raises(TypeError, match=r"must be float32 or float64 \(got torch.int16\)"):
        stft(torch.zeros(10, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"length 1000 must have 5 frames \(got 4\)"):
        istft(torch.zeros(257, 4, dtype=torch.complex64), 1000)
    with pytest.raises(ValueError, match=r"must be \(1, a multiple of 256\) \(got \(1, 100\)\)"):
        StreamingAnalysis().push(torch.zeros(1, 100))
