"""Reading and writing audio files: every defect is refused by name, every write is all or nothing."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels._atomic import replacing
from dyncp_kernels._optional import require

SUFFIXES = (".flac", ".ogg", ".wav")
"""Suffixes that can be written, and that are looked for in folders."""

LARGEST_SAMPLE = 1e6
"""In full scales: far beyond any recording, far below what overflows on its way through a network."""

_DEFAULT_SUBTYPE = {".flac": "PCM_16", ".ogg": "VORBIS", ".wav": "PCM_16"}
_FLOAT_SUBTYPES = ("FLOAT", "DOUBLE")
_LARGEST_LENGTH = 0xFFFFFFFF  # in a RIFF header; RF64 files say so, and have the real one elsewhere
_UNKNOWN_LENGTH = 0x7FFFF000  # what writers to a pipe put there is this or more: the data runs to the end of the file
_ENDLESS = 1 << 62  # libsndfile's count for a FLAC header without one, which it cannot read in blocks
_BLOCK = 1 << 16  # frames per call: libsndfile's Vorbis encoder takes stack in proportion to them


class AudioFileError(ValueError):
    """An audio file that cannot be used; the message reads "path: what must hold (got what came)"."""

    def __init__(self, path: str | os.PathLike[str], requirement: str, got: object) -> None:
        super().__init__(f"{os.fspath(path)}: {requirement} (got {got})")


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says: frames per channel, sample rate in Hz, channels, and libsndfile's subtype."""

    frames: int
    sample_rate: int
    channels: int
    subtype: str

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate


def audio_info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read a file's header.

    Raises:
        AudioFileError: the file is missing, no file, empty, or no audio.
    """
    with _opened(Path(path)) as file:
        return AudioInfo(file.frames, file.samplerate, file.channels, file.subtype)


def read_audio(
    path: str | os.PathLike[str], sample_rate: int | None = 16000, *, channels: bool = False
) -> NDArray[np.float32]:
    """Decode a whole file (any rate and channel count that libsndfile reads).

    Args:
        path: the file; its content decides the format, not its suffix.
        sample_rate: the rate in Hz to resample to (soxr, high quality); None keeps the file's own.
        channels: False mixes all channels to their mean; True returns them apart.

    Returns:
        float32 samples, full scale 1.0: shape (N,), or (channels, N) with ``channels=True``.

    Raises:
        AudioFileError: the file is missing, no file, empty, no audio, truncated (its header promises more frames than
            can be decoded, or an Ogg stream lacks its end), or holds NaN, infinity or absurdly large samples.
        ValueError: ``sample_rate`` is not positive.
    """
    if sample_rate is not None and sample_rate <= 0:
        raise ValueError(f"read_audio: sample_rate must be positive (got {sample_rate})")
    path = Path(path)
    with _opened(path) as file:
        if file.frames >= _ENDLESS:
            raise AudioFileError(path, "its header must state the number of frames", "none, a stream's header")
        promised = max(file.frames, _promised_frames(path, file))
        if promised == 0:
            raise AudioFileError(path, "must hold at least one frame", "no frames")
        try:
            samples = np.concatenate(list(_blocks(file)))
        except RuntimeError as error:
            raise AudioFileError(path, f"all {promised} frames must be decodable", str(error)) from error
        rate = file.samplerate
    if len(samples) < promised:
        raise AudioFileError(path, f"must hold the {promised} frames of its header", f"{len(samples)}, truncated")
    bad = np.flatnonzero(~np.isfinite(samples).all(axis=1))
    if bad.size:
        raise AudioFileError(path, "samples must be finite", f"NaN or infinity in {bad.size} frames, first {bad[0]}")
    peak = float(np.abs(samples).max())
    if peak > LARGEST_SAMPLE:
        raise AudioFileError(path, f"samples must be within {LARGEST_SAMPLE:.0e} times full scale", f"{peak:.3g}")
    planar = np.ascontiguousarray(samples.T) if channels else samples.mean(axis=1, dtype=np.float32)
    return planar if sample_rate is None else resample(planar, rate, sample_rate)


def resample(samples: NDArray[np.floating], source_rate: int, target_rate: int) -> NDArray[np.float32]:
    """Change the rate of float samples (N,) or (channels, N) with soxr (high quality); equal rates copy nothing."""
    if source_rate == target_rate:
        return samples.astype(np.float32, copy=False)
    soxr = require("soxr", extra="audio")
    return np.ascontiguousarray(soxr.resample(samples.T.astype(np.float32), source_rate, target_rate).T)


def write_audio(
    path: str | os.PathLike[str], samples: NDArray[np.floating], sample_rate: int, *, subtype: str | None = None
) -> None:
    """Write a file as a whole or not at all: a temporary file in the same folder takes the name when it is complete.

    Samples beyond full scale would clip in an integer or lossy format; then the whole signal is scaled to a peak of
    1.0 and a warning says by how much.

    Args:
        path: the suffix decides the format: one of ``SUFFIXES``.
        samples: floating point, full scale 1.0, shape (N,) or (channels, N).
        sample_rate: in Hz.
        subtype: libsndfile's name of the encoding ("PCM_24", "FLOAT", ...); default 16 bits, for Ogg Vorbis.

    Raises:
        AudioFileError: unknown suffix, an encoding that the format lacks, a missing folder, or a failed write.
        ValueError, TypeError: samples of another shape or dtype, or that are not finite.
    """
    soundfile = require("soundfile", extra="audio")
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise AudioFileError(path, f"suffix must be one of {', '.join(SUFFIXES)}", repr(path.suffix))
    subtype = subtype or _DEFAULT_SUBTYPE[suffix]
    container = suffix[1:].upper()
    if not soundfile.check_format(container, subtype):
        raise AudioFileError(path, f"the encoding must be one that {container} has", subtype)
    if not path.parent.is_dir():
        raise AudioFileError(path, "its folder must exist", "no folder")
    frames = _guard_clipping(_checked_frames(samples), path, subtype)

    try:
        with (
            replacing(path) as part,
            soundfile.SoundFile(
                part, "w", samplerate=sample_rate, channels=frames.shape[1], format=container, subtype=subtype
            ) as file,
        ):
            for start in range(0, len(frames), _BLOCK):
                file.write(frames[start : start + _BLOCK])
    except (RuntimeError, OSError, ValueError) as error:
        raise AudioFileError(path, "must be writable", str(error)) from error


def can_encode(suffix: str, subtype: str) -> bool:
    """Tell whether files of a suffix of ``SUFFIXES`` can hold libsndfile's encoding ``subtype``."""
    soundfile = require("soundfile", extra="audio")
    # libsndfile lists MPEG layer 3 among WAV's encodings, but cannot write it there.
    if suffix.lower() not in SUFFIXES or subtype.startswith("MPEG"):
        return False
    return bool(soundfile.check_format(suffix[1:].upper(), subtype))


def is_audio_suffix(suffix: str) -> bool:
    """Tell whether a suffix is that of some audio format, one that can be written here or not."""
    return suffix[1:].upper() in require("soundfile", extra="audio").available_formats()


def find_audio(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[Path, Path]]:
    """List audio files: files as given, folders searched through all their levels for ``SUFFIXES``, sorted.

    Returns:
        (file, name) pairs: the name is relative to the folder it was found in, or the bare name of a file given.
        A path that does not exist is listed too, so that reading it gives its error in its turn.
    """
    found: list[tuple[Path, Path]] = []
    for given in map(Path, paths):
        if given.is_dir():
            files = sorted(file for file in given.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            found += [(file, file.relative_to(given)) for file in files if not file.name.startswith(".")]
        else:
            found.append((given, Path(given.name)))
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    soundfile = require("soundfile", extra="audio")
    try:
        with path.open("rb") as raw:
            if not raw.read(1):
                raise AudioFileError(path, "must not be empty", "0 bytes")
    except OSError as error:
        raise AudioFileError(path, "must be a readable file", error.strerror) from error
    try:
        file = soundfile.SoundFile(path)
    except (RuntimeError, TypeError, ValueError) as error:  # TypeError: header-less formats, known by suffix
        raise AudioFileError(path, "must be an audio file, such as wav, flac, ogg or mp3", str(error)) from error
    with file:
        yield file


def _blocks(file: Any) -> Iterator[NDArray[np.float32]]:
    """Decode block by block: a damaged header may promise more frames than memory could hold."""
    while True:
        block = file.read(_BLOCK, dtype="float32", always_2d=True)
        yield block
        if len(block) < _BLOCK:
            return


def _promised_frames(path: Path, file: Any) -> int:
    """Frames that the file's own structure announces, where libsndfile corrects them to what it can find."""
    if file.format in ("WAV", "WAVEX", "RF64"):
        return _riff_frames(path)
    if file.format == "OGG":
        _check_ogg_end(path)
    return 0


def _riff_frames(path: Path) -> int:
    size = path.stat().st_size
    with path.open("rb") as raw:
        long_data = None  # RF64 keeps sizes beyond 32 bits in its ds64 chunk
        block_align = 0
        raw.seek(12)
        while len(head := raw.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            start = raw.tell()
            if name == b"ds64":
                long_data = struct.unpack("<QQ", raw.read(16))[1]
            elif name == b"fmt ":
                block_align = struct.unpack("<12xH", raw.read(14))[0]
            elif name == b"data":
                is_known = length < _UNKNOWN_LENGTH
                if long_data is not None and length == _LARGEST_LENGTH:
                    length, is_known = long_data, True
                if not is_known or start + length <= size or not block_align:
                    return 0
                return int(length // block_align)
            raw.seek(start + length + (length & 1))
    return 0


def _check_ogg_end(path: Path) -> None:
    """Walk the pages: a whole stream's last page is complete and carries the end-of-stream flag."""
    size = path.stat().st_size
    last_page = False
    with path.open("rb") as raw:
        while len(head := raw.read(27)) == 27 and head[:4] == b"OggS":
            last_page = bool(head[5] & 4)
            payload = sum(raw.read(head[26]))
            if raw.tell() + payload > size:
                last_page = False
                break
            raw.seek(payload, os.SEEK_CUR)
    if not last_page:
        raise AudioFileError(path, "must end with an end-of-stream page", "a truncated Ogg stream")


def _checked_frames(samples: NDArray[np.floating]) -> NDArray[np.floating]:
    """Samples (N,) or (channels, N) as (N, channels)."""
    samples = np.asarray(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise TypeError(f"write_audio: samples must be floating point (got {samples.dtype})")
    if samples.ndim not in (1, 2) or samples.size == 0:
        raise ValueError(f"write_audio: samples must be (N,) or (channels, N), not empty (got {samples.shape})")
    if not np.isfinite(samples).all():
        raise ValueError("write_audio: samples must be finite (got NaN or infinity)")
    return samples[:, None] if samples.ndim == 1 else samples.T


def _guard_clipping(frames: NDArray[np.floating], path: Path, subtype: str) -> NDArray[np.floating]:
    peak = float(np.abs(frames).max())
    if peak <= 1.0 or subtype in _FLOAT_SUBTYPES:
        return frames
    warnings.warn(f"{path}: scaled by {-20 * np.log10(peak):.2f} dB to avoid clipping", stacklevel=3)
    return frames / peak
