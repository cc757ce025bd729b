"""Make the demo clip: synthetic speech (espeak-ng) in generated noise, as noisy.flac and clean.flac beside this file.

Run with ``python -m dyncp_kernels.demo_clip.make_clip`` where espeak-ng is installed. Same espeak-ng, same files: the
noise comes from a fixed seed, so nothing in the clip was recorded and all of it may be shipped.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dyncp_kernels.audio.files import read_audio, write_audio

RATE = 16000
SECONDS = 7.5
SNR_DB = 6.0
SEED = 20

Signal = NDArray[np.float64]

# (voice, words a minute, pitch 0-99, start in s, gain, text): different speakers, rates and pauses
UTTERANCES = (
    ("en-us+f3", 165, 55, 0.35, 1.0, "Six grey geese flew over the harbour,"),
    ("en-gb+m3", 150, 38, 2.75, 0.9, "while the old fishing boat waited for the tide."),
    ("en-gb-scotland+f2", 180, 62, 5.70, 1.1, "Shall we go home now?"),
)


def speak(voice: str, speed: int, pitch: int, text: str) -> Signal:
    """Synthesise one utterance at 16 kHz, level 1 RMS."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", path, text], check=True)
        speech = read_audio(path, RATE).astype(np.float64)
    return speech / np.sqrt(np.mean(speech**2))


def coloured(rng: np.random.Generator, count: int, slope: float, low: float, high: float) -> Signal:
    """Gaussian noise of RMS 1 with power falling as frequency ** -slope, rolled off outside ``low`` to ``high`` Hz."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / RATE), 0.1)
    gain = frequency ** (-slope / 2) / (1 + (low / frequency) ** 4) / (1 + (frequency / high) ** 4)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) * gain, count)
    return noise / np.sqrt(np.mean(noise**2))


def fan(rng: np.random.Generator, time: Signal) -> Signal:
    """A fan: blade-pass harmonics that wander a little, over the rush of air."""
    speed = 1 + 0.01 * np.sin(2 * np.pi * 0.4 * time)
    phase = 2 * np.pi * 118.0 * np.cumsum(speed) / RATE
    hum = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 7))
    return 0.4 * hum + coloured(rng, len(time), 2.0, 80, 7000)


def babble(rng: np.random.Generator, time: Signal) -> Signal:
    """Speech-shaped bands, each swelling and fading at the rate of syllables."""
    total = np.zeros_like(time)
    for low, high, gain in ((150, 700, 1.0), (600, 1500, 0.6), (1400, 3000, 0.35), (2800, 6000, 0.2)):
        for _ in range(3):
            syllables = coloured(rng, len(time), 0.0, 1.0, 5.0)
            total += gain * np.maximum(syllables, 0.0) * coloured(rng, len(time), 1.5, low, high)
    return total / np.sqrt(np.mean(total**2))


def clicks(rng: np.random.Generator, time: Signal) -> Signal:
    """Short resonant knocks, like keys being pressed."""
    total = np.zeros_like(time)
    ring = np.arange(int(0.03 * RATE)) / RATE
    for start in np.sort(rng.uniform(0.1, SECONDS - 0.1, 16)):
        at = int(start * RATE)
        pitch, strength = rng.uniform(1200, 4500), rng.uniform(0.5, 1.0)
        total[at : at + len(ring)] += strength * np.sin(2 * np.pi * pitch * ring) * np.exp(-ring / 0.004)
    return total


def make() -> tuple[Signal, Signal]:
    """Return (noisy, clean), both of ``SECONDS`` at 16 kHz, SNR over the active speech ``SNR_DB``."""
    rng = np.random.default_rng(SEED)
    time = np.arange(int(SECONDS * RATE)) / RATE
    clean = np.zeros_like(time)
    for voice, speed, pitch, start, gain, text in UTTERANCES:
        speech = gain * speak(voice, speed, pitch, text)
        at = int(start * RATE)
        room = min(len(speech), len(clean) - at)
        clean[at : at + room] += speech[:room]
    # The crowd grows and the fan is switched on late, so that the gates have something to follow.
    crowd = np.interp(time, [0, 2.5, 4.0, SECONDS], [0.35, 0.5, 1.1, 0.6])
    switched_on = 1 / (1 + np.exp(-(time - 1.6) / 0.12))
    noise = crowd * babble(rng, time) + 0.7 * switched_on * fan(rng, time) + 1.5 * clicks(rng, time)
    noise += 0.03 * coloured(rng, len(time), 1.0, 50, 8000)  # the microphone's own floor
    active = np.abs(clean) > 1e-3
    noise *= np.sqrt(np.mean(clean[active] ** 2) / np.mean(noise**2)) * 10 ** (-SNR_DB / 20)
    level = 0.7 / np.abs(clean + noise).max()
    return level * (clean + noise), level * clean


if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, signal in zip(("noisy", "clean"), make()):
        write_audio(folder / f"{name}.flac", signal, RATE)
