"""Recorded masks survive the disk."""

from pathlib import Path

import numpy as np
import pytest

from dyncp_kernels.evaluation.mask_files import load_masks, save_masks


def _masks(seed: int, frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((channels, frames)) < 0.3 for channels in (5, 16)]


def test_masks_come_back_the_same(tmp_path: Path) -> None:
    files = [_masks(0, 7), _masks(1, 1), _masks(2, 30)]
    save_masks(tmp_path / "m", files)
    back = load_masks(tmp_path / "m.npz")
    assert len(back) == 3
    for masks, again in zip(files, back):
        assert all(np.array_equal(a, b) for a, b in zip(masks, again))
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]


def test_clips_of_different_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same blocks and channels"):
        save_masks(tmp_path / "m", [_masks(0, 7), _masks(1, 7)[:1]])


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz: a mask file must be written by save_masks"):
        load_masks(tmp_path / "x.npz")
