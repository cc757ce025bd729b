import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dyncp_kernels.evaluation.dynamism import DynamismMeter, block_masks, measure_dynamism


class Gates(NamedTuple):
    hidden: torch.Tensor | None
    out: torch.Tensor | None


def test_static_mask_is_not_dynamic():
    mask = np.zeros((8, 32), dtype=bool)
    mask[:2] = True
    (block,) = measure_dynamism([[mask], [mask]])
    assert block.row() == {
        "usage": 0.25,
        "flips": 0.0,
        "always_on": 0.25,
        "always_off": 0.75,
        "entropy": 0.0,
        "union_4": 0.25,
        "union_8": 0.25,
        "union_16": 0.25,
    }
    assert (block.channels, block.frames) == (8, 64)


def test_alternating_mask_flips_in_every_frame():
    mask = np.arange(64) % 2 == np.arange(4)[:, None] % 2
    (block,) = measure_dynamism([[mask]])
    assert block.flips == 1.0
    assert block.usage == 0.5
    assert block.entropy == pytest.approx(1.0)
    assert block.union == {4: 1.0, 8: 1.0, 16: 1.0}
    assert block.always_on == block.always_off == 0.0


def test_random_gates_have_the_expected_statistics():
    mask = np.random.default_rng(0).random((64, 16000)) < 0.25
    (block,) = measure_dynamism([[mask]])
    assert block.usage == pytest.approx(0.25, abs=0.01)
    assert block.flips == pytest.approx(2 * 0.25 * 0.75, abs=0.01)
    assert block.entropy == pytest.approx(-(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)), abs=0.01)
    for window, share in block.union.items():
        assert share == pytest.approx(1 - 0.75**window, abs=0.01)


def test_borders_between_files_are_no_flips_and_windows_do_not_span_them():
    on, off = np.ones((3, 6), dtype=bool), np.zeros((3, 6), dtype=bool)
    (block,) = measure_dynamism([[on], [off]])
    assert block.flips == 0.0
    assert block.usage == 0.5
    assert block.union[4] == 0.5
    assert math.isnan(block.union[8])


def test_always_on_and_off_allow_one_percent():
    mask = np.zeros((4, 1000), dtype=bool)
    mask[0, :995] = True
    mask[1, :985] = True
    mask[2, :5] = True
    mask[3, :15] = True
    (block,) = measure_dynamism([[mask]])
    assert block.always_on == block.always_off == 0.25


def test_overall_weighs_channels_not_blocks():
    meter = DynamismMeter()
    meter.add([np.ones((30, 16), dtype=bool), torch.zeros(10, 16, dtype=torch.bool)])
    assert [block.usage for block in meter.blocks()] == [1.0, 0.0]
    assert meter.overall().usage == 0.75
    assert meter.overall().channels == 40


def test_single_frames_have_no_flips_to_count():
    (block,) = measure_dynamism([[np.ones((3, 1), dtype=bool)]])
    assert math.isnan(block.flips)
    assert block.usage == 1.0


def test_mistakes_are_named():
    meter = DynamismMeter()
    with pytest.raises(ValueError, match="at least one frame of masks must be added"):
        meter.blocks()
    with pytest.raises(TypeError, match=r"must be boolean \(got float64\)"):
        meter.add([np.ones((2, 3))])
    with pytest.raises(ValueError, match=r"must be \(channels, frames\) \(got \(2,\)\)"):
        meter.add([np.ones(2, dtype=bool)])
    meter.add([np.ones((2, 3), dtype=bool)])
    with pytest.raises(ValueError, match=r"must have \[2\] channels per block \(got \[2, 2\]\)"):
        meter.add([np.ones((2, 3), dtype=bool)] * 2)


def test_block_masks_take_one_item_stack_the_sites_and_repeat_utterance_gates():
    out = torch.tensor([[[0.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]])
    hidden = torch.tensor([[[True], [False]], [[False], [True]]])
    masks = block_masks([Gates(hidden, out), Gates(None, None), Gates(hidden, None)], frames=3, item=1)
    assert [mask.tolist() for mask in masks] == [
        [[True, False, False], [False] * 3, [True] * 3],
        [[False] * 3, [True] * 3],
    ]
