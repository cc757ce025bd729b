import os
import stat
import struct
import warnings

import numpy as np
import pytest
import soundfile

from dyncp_kernels.audio import files
from dyncp_kernels.audio.files import AudioFileError, audio_info, find_audio, read_audio, resample, write_audio


def tone(seconds=0.5, rate=16000, frequency=440.0, level=0.5):
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1e-4), (".flac", 1e-4), (".ogg", 0.05)])
def test_every_suffix_round_trips(tmp_path, suffix, tolerance):
    signal = tone()
    write_audio(tmp_path / f"a{suffix}", signal, 16000)
    back = read_audio(tmp_path / f"a{suffix}")
    assert back.dtype == np.float32
    assert back.shape == signal.shape
    assert np.abs(back - signal).max() < tolerance


def test_subtype_keeps_the_encoding(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), 16000, subtype="FLOAT")
    assert audio_info(tmp_path / "a.wav").subtype == "FLOAT"
    assert np.array_equal(read_audio(tmp_path / "a.wav"), tone())


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path, rate):
    write_audio(tmp_path / "a.wav", tone(1.0, rate), rate)
    back = read_audio(tmp_path / "a.wav", 16000)
    assert abs(len(back) - 16000) <= 1
    middle = slice(2000, 14000)
    assert np.abs(back[middle] - tone(1.0)[middle]).max() < 2e-3


def test_no_rate_keeps_the_files_own(tmp_path):
    write_audio(tmp_path / "a.wav", tone(1.0, 44100), 44100)
    assert read_audio(tmp_path / "a.wav", None).shape == (44100,)


def test_stereo_mixes_to_the_mean_or_stays_apart(tmp_path):
    stereo = np.stack([tone(), -0.5 * tone()])
    write_audio(tmp_path / "a.wav", stereo, 16000)
    assert audio_info(tmp_path / "a.wav").channels == 2
    assert np.allclose(read_audio(tmp_path / "a.wav"), 0.25 * tone(), atol=1e-4)
    assert np.allclose(read_audio(tmp_path / "a.wav", channels=True), stereo, atol=1e-4)
    assert read_audio(tmp_path / "a.wav", 8000, channels=True).shape == (2, 4000)


def test_resample_of_equal_rates_changes_nothing():
    assert resample(tone(), 16000, 16000) is not None
    assert np.array_equal(resample(tone(), 16000, 16000), tone())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AudioFileError, match=r"nothing\.wav: must be a readable file \(got No such file"):
        read_audio(tmp_path / "nothing.wav")


def test_folder_is_no_file(tmp_path):
    with pytest.raises(AudioFileError, match=r"must be a readable file \(got Is a directory"):
        read_audio(tmp_path)


def test_empty_file_is_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioFileError, match=r"empty\.wav: must not be empty \(got 0 bytes\)"):
        read_audio(tmp_path / "empty.wav")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_header_without_frames_is_refused(tmp_path, suffix):
    soundfile.write(tmp_path / f"none{suffix}", np.zeros(0), 16000)
    with pytest.raises(AudioFileError, match=rf"none\{suffix}: must"):
        read_audio(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.raw", "a.txt"])
def test_text_is_no_audio(tmp_path, name):
    (tmp_path / name).write_text("this is not audio at all\n" * 40)
    with pytest.raises(AudioFileError, match=rf"{name}: must be an audio file"):
        read_audio(tmp_path / name)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"cut{suffix}"
    rng = np.random.default_rng(0)
    write_audio(path, 0.1 * rng.standard_normal(64000), 16000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(AudioFileError, match=rf"cut\{suffix}: .*\(got"):
        read_audio(path)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
@pytest.mark.parametrize("length", [1, 4, 12, 20, 43, 60])
def test_file_cut_inside_its_header_is_refused(tmp_path, suffix, length):
    path = tmp_path / f"stub{suffix}"
    write_audio(path, tone(), 16000)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AudioFileError, match=rf"stub\{suffix}: "):
        read_audio(path)


def test_garbage_inside_a_flac_is_refused(tmp_path):
    path = tmp_path / "bad.flac"
    write_audio(path, 0.1 * np.random.default_rng(0).standard_normal(64000), 16000)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match=r"bad\.flac: "):
        read_audio(path)


def test_wav_of_unknown_length_is_read_to_its_end(tmp_path):
    path = tmp_path / "pipe.wav"
    write_audio(path, tone(), 16000)
    data = bytearray(path.read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(read_audio(path)) == 8000


def test_flac_header_without_a_length_is_refused(tmp_path):
    path = tmp_path / "pipe.flac"
    write_audio(path, tone(), 16000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's 36-bit count of samples
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match=r"pipe\.flac: its header must state the number of frames"):
        read_audio(path)


def test_a_lying_header_does_not_allocate_what_it_promises(tmp_path):
    path = tmp_path / "huge.flac"
    write_audio(path, tone(), 16000)
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] | 0x0F]) + b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match=r"huge\.flac: all 68719476735 frames must be decodable"):
        read_audio(path)


def test_wav_with_a_chunk_after_the_samples_is_whole(tmp_path):
    path = tmp_path / "tagged.wav"
    write_audio(path, tone(), 16000)
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 4) + b"INFO")
    assert len(read_audio(path)) == 8000


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path, value):
    signal = tone()
    signal[123] = value
    soundfile.write(tmp_path / "bad.wav", signal, 16000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match=r"bad\.wav: samples must be finite .* first 123\)"):
        read_audio(tmp_path / "bad.wav")


def test_rate_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="sample_rate must be positive"):
        read_audio(tmp_path / "a.wav", 0)


def test_audio_file_error_is_a_value_error():
    assert issubclass(AudioFileError, ValueError)


def test_loud_samples_are_scaled_not_clipped(tmp_path):
    with pytest.warns(UserWarning, match=r"loud\.wav: scaled by -6\.02 dB"):
        write_audio(tmp_path / "loud.wav", tone(level=2.0), 16000)
    back = read_audio(tmp_path / "loud.wav")
    assert np.abs(back - tone(level=1.0)).max() < 1e-3


def test_float_files_keep_loud_samples(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_audio(tmp_path / "loud.wav", tone(level=2.0), 16000, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "loud.wav"), tone(level=2.0))


def test_failure_midway_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_audio(path, tone(), 16000)
    before = path.read_bytes()
    writes = []

    def fail_second_time(self, data):
        writes.append(len(data))
        if len(writes) == 2:
            raise OSError("no space left on device")
        return original(self, data)

    original = soundfile.SoundFile.write
    monkeypatch.setattr(soundfile.SoundFile, "write", fail_second_time)
    with pytest.raises(AudioFileError, match=r"a\.wav: must be writable \(got no space left"):
        write_audio(path, tone(10.0), 16000)
    assert len(writes) == 2
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


def test_interrupt_midway_leaves_no_partial_file(tmp_path, monkeypatch):
    def interrupt(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_audio(tmp_path / "a.wav", tone(), 16000)
    assert os.listdir(tmp_path) == []


def test_the_file_appears_only_when_complete(tmp_path, monkeypatch):
    seen = []
    original = os.replace

    def watch(source, target):
        seen.append((soundfile.info(source).frames, os.path.dirname(source) == os.path.dirname(target)))
        assert not os.path.exists(target)
        original(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    write_audio(tmp_path / "a.flac", tone(), 16000)
    assert seen == [(8000, True)]


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_new_files_follow_the_umask(tmp_path):
    (tmp_path / "plain").touch()
    write_audio(tmp_path / "a.wav", tone(), 16000)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "a.wav")]
    assert modes[0] == modes[1]


def test_write_names_its_mistakes(tmp_path):
    with pytest.raises(AudioFileError, match=r"suffix must be one of \.flac, \.ogg, \.wav \(got '\.mp3'\)"):
        write_audio(tmp_path / "a.mp3", tone(), 16000)
    with pytest.raises(AudioFileError, match="its folder must exist"):
        write_audio(tmp_path / "no" / "a.wav", tone(), 16000)
    with pytest.raises(AudioFileError, match=r"must be one that FLAC has \(got FLOAT\)"):
        write_audio(tmp_path / "a.flac", tone(), 16000, subtype="FLOAT")
    with pytest.raises(TypeError, match=r"must be floating point \(got int16\)"):
        write_audio(tmp_path / "a.wav", np.zeros(10, np.int16), 16000)
    with pytest.raises(ValueError, match=r"\(N,\) or \(channels, N\), not empty \(got \(0,\)\)"):
        write_audio(tmp_path / "a.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="must be finite"):
        write_audio(tmp_path / "a.wav", np.array([0.0, np.nan]), 16000)
    assert os.listdir(tmp_path) == []


def test_find_audio_searches_folders_and_keeps_files_as_given(tmp_path):
    for name in ("b.wav", "a.FLAC", "deep/er/c.ogg", "notes.txt", ".hidden.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    single, missing = tmp_path / "in" / "notes.txt", tmp_path / "missing.wav"
    found = find_audio([tmp_path / "in", single, missing])
    assert [str(name) for _, name in found] == ["a.FLAC", "b.wav", "deep/er/c.ogg", "notes.txt", "missing.wav"]
    assert found[0][0] == tmp_path / "in" / "a.FLAC"


def test_damaged_files_never_crash_the_reader(tmp_path):
    rng = np.random.default_rng(1)
    for suffix in (".wav", ".flac", ".ogg"):
        path = tmp_path / f"fuzz{suffix}"
        write_audio(path, 0.1 * rng.standard_normal(4000), 16000)
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for at in rng.integers(0, len(data), rng.integers(0, 8)):
                data[at] = rng.integers(256)
            path.write_bytes(data)
            try:
                samples = read_audio(path)
            except AudioFileError as error:
                assert str(error).startswith(str(path))  # noqa: PT017
            else:
                assert np.isfinite(samples).all()


@pytest.mark.parametrize("length", [0x7FFFF000, 0x7FFFFFDB, 0x80000000])
def test_wav_of_a_pipes_length_is_read_to_its_end(tmp_path, length):
    write_audio(tmp_path / "a.wav", tone(), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", length)
    (tmp_path / "a.wav").write_bytes(content)
    assert np.abs(read_audio(tmp_path / "a.wav") - tone()).max() < 1e-4


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    path = tmp_path / ("a" * 251 + ".wav")
    write_audio(path, tone(), 16000)
    assert path.exists()
