"""A short noisy sample, its clean reference, and the script that makes both."""

from pathlib import Path

__all__ = ["CLEAN", "NOISY"]

NOISY = Path(__file__).with_name("noisy.flac")
CLEAN = Path(__file__).with_name("clean.flac")
