"""Training data: pairs, mixtures, augmentation; batches are functions of seed and step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dyncp_kernels.training.augment import augment
from dyncp_kernels.training.config import DataConfig
from dyncp_kernels.training.data import MixtureSource, PairSource, find_pairs, open_training_data, prefetch

sf = pytest.importorskip("soundfile")
RATE = 16000


def _write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def _noise(seed: int, seconds: float, level: float = 0.05) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def _config(**values: object) -> DataConfig:
    return DataConfig(**{"speech": "s", "noise": "n", "valid_clean": "c", "valid_noisy": "v", **values})


def test_pair_crops_keep_clean_and_noise_aligned(tmp_path: Path) -> None:
    ramp = np.linspace(-0.5, 0.5, 20000, dtype=np.float32)
    clean, noisy = _write(tmp_path / "c/a.wav", ramp), _write(tmp_path / "n/a.wav", ramp + 0.125)
    source = PairSource([(clean, noisy)], 4000, RATE, remix=False)
    speech, noise = source.batch(0, 0, 8)
    assert speech.shape == noise.shape == (8, 4000)
    torch.testing.assert_close(noise, torch.full_like(noise, 0.125), atol=2e-4, rtol=0)
    assert len({float(row[0]) for row in speech}) > 4


def test_pairs_shorter_than_a_crop_are_padded_with_silence(tmp_path: Path) -> None:
    short = np.full(1000, 0.25, np.float32)
    clean, noisy = _write(tmp_path / "c/a.wav", short), _write(tmp_path / "n/a.wav", short)
    speech, _ = PairSource([(clean, noisy)], 4000, RATE).batch(0, 0, 4)
    assert (speech != 0).sum(1).tolist() == [1000] * 4


def test_remix_swaps_whole_noises_inside_the_batch(tmp_path: Path) -> None:
    pairs = []
    for i in range(6):
        clean = np.full(4000, 0.1, np.float32)
        pairs.append((_write(tmp_path / f"c/{i}.wav", clean), _write(tmp_path / f"n/{i}.wav", clean + 0.05 * i)))
    _, plain = PairSource(pairs, 4000, RATE, remix=False).batch(1, 0, 32)
    _, mixed = PairSource(pairs, 4000, RATE, remix=True).batch(1, 0, 32)
    assert not torch.equal(plain, mixed)
    assert torch.equal(plain[:, 0].sort().values, mixed[:, 0].sort().values)


@pytest.mark.parametrize("snr", [-5.0, 10.0])
def test_mixtures_have_the_snr_that_was_asked_for(tmp_path: Path, snr: float) -> None:
    speech = [_write(tmp_path / f"s{i}.wav", _noise(i, 2.0, 0.1)) for i in range(3)]
    noise = [_write(tmp_path / "n.wav", _noise(9, 0.5, 0.02))]
    clean, drawn = MixtureSource(speech, noise, 16000, RATE, (snr, snr)).batch(0, 0, 4)
    ratio = 20 * torch.log10(clean.square().mean(-1).sqrt() / drawn.square().mean(-1).sqrt())
    # Joined utterances leave pauses, which lower the mean level but not the active level.
    assert (ratio - snr).abs().max() < 1.5


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{i}.wav", _noise(i, 1.0)) for i in range(4)]
    source = MixtureSource(files[:2], files[2:], 8000, RATE, (0.0, 10.0))
    first, again, later, other = (source.batch(*key, 2)[0] for key in ((0, 5), (0, 5), (0, 6), (1, 5)))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_prefetched_batches_come_in_order(tmp_path: Path) -> None:
    files = [_write(tmp_path / f"{i}.wav", _noise(i, 1.0)) for i in range(2)]
    source = MixtureSource(files[:1], files[1:], 8000, RATE, (0.0, 10.0))
    for step, clean, noise in prefetch(source, 3, range(4, 13), 2, depth=3):
        expected = source.batch(3, step, 2)
        assert torch.equal(clean, expected[0])
        assert torch.equal(noise, expected[1])
    assert step == 12


def test_augmentation_treats_speech_and_noise_as_one_channel() -> None:
    torch.manual_seed(0)
    clean = 0.1 * torch.randn(4, 8000)
    config = _config(equalise_db=0.0, band_mask=1.0)
    speech, noise = augment(clean, clean.clone(), config, torch.Generator().manual_seed(0))
    torch.testing.assert_close(speech, noise)
    removed = (torch.fft.rfft(speech).abs() < 1e-3).float().mean(-1)
    assert (removed > 0.04).all()


def test_augmented_mixtures_stay_below_full_scale() -> None:
    config = _config(level_db=(10.0, 10.0))
    clean, noise = augment(torch.randn(4, 8000), torch.randn(4, 8000), config, torch.Generator().manual_seed(0))
    assert (clean + noise).abs().max() <= 1.0


def test_find_pairs_matches_names_across_formats_and_folders(tmp_path: Path) -> None:
    clean = _write(tmp_path / "c/x/a.wav", _noise(0, 0.1))
    noisy = _write(tmp_path / "n/x/a.flac", _noise(0, 0.1))
    assert find_pairs(tmp_path / "c", tmp_path / "n") == [(clean, noisy)]


def test_files_that_differ_in_their_suffix_only_are_refused_and_hidden_ones_ignored(tmp_path: Path) -> None:
    for name in ("c/a.wav", "n/a.wav", "n/._a.wav"):
        _write(tmp_path / name, _noise(0, 0.1))
    assert len(find_pairs(tmp_path / "c", tmp_path / "n")) == 1
    _write(tmp_path / "c/a.flac", _noise(0, 0.1))
    with pytest.raises(ValueError, match="names must differ in more than their suffix"):
        find_pairs(tmp_path / "c", tmp_path / "n")


def test_unpaired_and_missing_data_are_refused_by_name(tmp_path: Path) -> None:
    _write(tmp_path / "c/a.wav", _noise(0, 0.1))
    _write(tmp_path / "n/b.wav", _noise(0, 0.1))
    with pytest.raises(ValueError, match="must have equal names"):
        find_pairs(tmp_path / "c", tmp_path / "n")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_pairs(tmp_path / "gone", tmp_path / "n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold audio files"):
        find_pairs(tmp_path / "empty", tmp_path / "n")


def test_voicebank_layout_is_read_and_a_tenth_held_out(tmp_path: Path) -> None:
    for i in range(20):
        for side in ("clean", "noisy"):
            _write(tmp_path / f"{side}_trainset_28spk_wav/p{i:03}.wav", _noise(i, 0.3))
    _, valid = open_training_data(DataConfig(voicebank=str(tmp_path), seconds=0.2), RATE)
    assert [clean.stem for clean, _ in valid] == ["p018", "p019"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speech": None, "noise": None}, r"exactly one of .* \(got 0"),
        ({"voicebank": "x"}, r"exactly one of .* \(got 2"),
        ({"noise": None}, "speech and noise must be given together"),
        ({"valid_clean": None, "valid_noisy": None}, "needs valid_clean"),
        ({"seconds": 0}, "seconds must be positive"),
    ],
)
def test_data_config_refuses_what_names_no_data(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**values)
