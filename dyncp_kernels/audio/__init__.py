"""Audio around the network: files, the short-time Fourier transform, offline and streaming enhancement."""

from dyncp_kernels.audio.enhance import enhance
from dyncp_kernels.audio.files import (
    SUFFIXES,
    AudioFileError,
    AudioInfo,
    audio_info,
    find_audio,
    read_audio,
    resample,
    write_audio,
)
from dyncp_kernels.audio.stream import StreamingEnhancer

__all__ = [
    "SUFFIXES",
    "AudioFileError",
    "AudioInfo",
    "StreamingEnhancer",
    "audio_info",
    "enhance",
    "find_audio",
    "read_audio",
    "resample",
    "write_audio",
]
