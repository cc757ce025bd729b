"""Record masks from a trained model on real audio, in the small files that ``dyncp bench`` reads.

    python benchmarks/record_masks.py MODEL FOLDER [-o benchmarks/recorded] [--frames 1000] [--densities 10 25 50 75]

For every density the model's gate scores are shifted as its run-time budget does, and the masks of the first files in
FOLDER, about ``--frames`` frames of them, are written to SITE_PERCENT.npz. The density at which the model was trained
is recorded without a shift: give it as ``--trained``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from dyncp_kernels import load
from dyncp_kernels.audio import read_audio
from dyncp_kernels.audio.files import find_audio
from dyncp_kernels.audio.stft import features, stft
from dyncp_kernels.bench.masks import write_recorded
from dyncp_kernels.evaluation.dynamism import block_masks
from dyncp_kernels.nn import shift_for_budget


@torch.no_grad()
def record(model: str, folder: Path, out: Path, densities: list[int], trained: int, frames: int) -> list[Path]:
    network = load(model).fold()
    config = network.config
    if config.site not in ("output", "hidden"):
        raise SystemExit(f"record_masks: the model must gate the output or the hidden channels (got {config.site!r})")
    clips, total = [], 0
    for source, _ in find_audio([folder]):
        samples = torch.from_numpy(read_audio(source, config.sample_rate))
        clips.append(features(stft(samples[None], config.n_fft, config.hop), config.compression))
        total += clips[-1].shape[-1]
        if total >= frames:
            break
    biases = np.stack([block.gate.expand.bias.detach().numpy() for block in network.blocks])
    written = []
    for density in densities:
        shift = shift_for_budget(network.calibration, None if density == trained else density / 100)
        masks = []
        for clip in clips:
            _, gates = network(clip, shift, return_gates=True)
            masks.append(block_masks(gates, clip.shape[-1]))
        path = out / f"{config.site}_{density}.npz"
        write_recorded(masks, path, frames, biases)
        kept = sum(float(mask.sum()) for clip in masks for mask in clip) / sum(m.size for clip in masks for m in clip)
        print(f"{path}: {kept:.3f} of the channels kept, {path.stat().st_size / 1024:.0f} KB")
        written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="shipped name or path")
    parser.add_argument("folder", type=Path, help="noisy recordings")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).resolve().parent / "recorded")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--densities", type=int, nargs="+", default=[10, 25, 50, 75])
    parser.add_argument("--trained", type=int, default=25, help="the percentage that needs no shift")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    record(
        *(arguments.model, arguments.folder, arguments.out, arguments.densities, arguments.trained, arguments.frames)
    )


if __name__ == "__main__":
    main()
