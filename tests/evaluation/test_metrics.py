import numpy as np
import pytest

from dyncp_kernels.audio.files import read_audio
from dyncp_kernels.demo_clip import make_clip
from dyncp_kernels.evaluation.metrics import mean_interval, pesq_wideband, si_sdr, stoi

CLIP = make_clip.__file__.rsplit("/", 1)[0]


@pytest.fixture(scope="module")
def pair():
    return read_audio(f"{CLIP}/clean.flac"), read_audio(f"{CLIP}/noisy.flac")


def test_scores_fall_as_noise_rises(pair):
    clean, noisy = pair
    half = clean + 0.1 * (noisy - clean)
    for score in (pesq_wideband, stoi, si_sdr):
        assert score(clean, half) > score(clean, noisy) + 0.02


def test_perfect_copies_reach_the_top(pair):
    clean, _ = pair
    assert pesq_wideband(clean, clean) == pytest.approx(4.644, abs=0.001)
    assert stoi(clean, clean) == pytest.approx(1.0, abs=1e-6)
    assert stoi(clean, clean, extended=True) == pytest.approx(1.0, abs=1e-6)


def test_si_sdr_has_its_closed_form_and_ignores_scale_and_offset():
    time = np.arange(16000) / 16000
    target, error = np.sin(2 * np.pi * 100 * time), np.cos(2 * np.pi * 200 * time)
    assert si_sdr(target, target + 0.1 * error) == pytest.approx(20.0, abs=1e-6)
    assert si_sdr(target, 3 * (target + 0.1 * error) + 1) == pytest.approx(20.0, abs=1e-6)
    assert si_sdr(target, -target) > 100  # sign is a scale too


@pytest.mark.parametrize("score", [pesq_wideband, stoi, si_sdr])
def test_mistakes_are_named(score):
    noise = np.random.default_rng(0).standard_normal(16000)
    name = score.__name__
    with pytest.raises(ValueError, match=rf"{name}: .* of one length \(got \(16000,\), \(15999,\)\)"):
        score(noise, noise[1:])
    with pytest.raises(ValueError, match=rf"{name}: clean must not be silent"):
        score(np.zeros(16000), noise)
    with pytest.raises(ValueError, match=rf"{name}: enhanced must not be silent"):
        score(noise, np.zeros(16000))
    with pytest.raises(ValueError, match=rf"{name}: enhanced must be finite"):
        score(noise, np.where(np.arange(16000) == 5, np.nan, noise))
    with pytest.raises(ValueError, match="of one length"):
        score(noise[None], noise[None])


def test_pesq_refuses_other_rates_and_too_little_sound():
    noise = np.random.default_rng(0).standard_normal(16000)
    with pytest.raises(ValueError, match=r"sample_rate must be at least 16000 \(got 8000\)"):
        pesq_wideband(noise, noise, 8000)
    with pytest.raises(ValueError, match="must hold at least one utterance"):
        pesq_wideband(noise[:1000], noise[:1000])


def test_stoi_refuses_too_short_signals():
    noise = np.random.default_rng(0).standard_normal(3000)
    with pytest.raises(ValueError, match=r"0\.4 s \(got 0\.188 s\)"):
        stoi(noise, noise)


def test_interval_covers_the_true_mean_as_often_as_promised():
    rng = np.random.default_rng(0)
    hits = [
        low <= 1.0 <= high
        for low, high in (mean_interval(rng.normal(1.0, 2.0, 60), 0.9, resamples=500)[1:3] for _ in range(400))
    ]
    assert 0.85 < np.mean(hits) < 0.94


def test_interval_holds_the_mean_and_repeats():
    values = [1.0, 2.0, 4.0]
    result = mean_interval(values)
    assert result.mean == pytest.approx(7 / 3)
    assert result.number == 3
    assert 1.0 <= result.low < result.mean < result.high <= 4.0
    assert result == mean_interval(values)
    assert str(mean_interval([2.0])) == "2.000 [2.000, 2.000]"


def test_interval_mistakes_are_named():
    with pytest.raises(ValueError, match=r"at least one number with a mean \(got shape \(0,\)\)"):
        mean_interval([])
    for values in ([1.0, np.nan], [np.inf, -np.inf]):
        with pytest.raises(ValueError, match="at least one number with a mean"):
            mean_interval(values)
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1 \(got 95\)"):
        mean_interval([1.0], 95)
