"""The MAC counter gives the exact numbers of the published geometry."""

import pytest
import torch

from dyncp_kernels.nn import BlockGates, ConvFSENet, ConvFSENetConfig, macs_from_gates, macs_per_frame


def _prefix_gates(channels: int, kept: int, frames: int = 5) -> torch.Tensor:
    return (torch.arange(channels) < kept)[None, :, None].expand(1, channels, frames)


def test_default_network_has_662528_macs_per_frame() -> None:
    assert ConvFSENet().macs_per_frame == 662_528


def test_default_network_has_about_0_67_million_parameters() -> None:
    parameters = sum(p.numel() for p in ConvFSENet().parameters())
    assert 0.66e6 < parameters < 0.69e6


@pytest.mark.parametrize(
    ("site", "kept", "gate_macs", "saving"),
    [("output", 32, 18_432, 0.306), ("hidden", 64, 27_648, 0.634)],
)
def test_quarter_masks_give_the_published_saving(site: str, kept: int, gate_macs: int, saving: float) -> None:
    config = ConvFSENetConfig(site=site)
    width = 128 if site == "output" else 256
    mask = _prefix_gates(width, kept)
    gates = BlockGates(hidden=mask if site == "hidden" else None, out=mask if site == "output" else None)
    macs = macs_from_gates(config, [gates] * 9)
    blocks = 9 * (256 * 131 + 32 * 256) if site == "output" else 9 * 64 * (128 + 3 + 128)
    assert macs == 2 * 257 * 128 + blocks + gate_macs
    assert 1 - macs / 662_528 == pytest.approx(saving, abs=5e-4)
    counted = macs_per_frame(config, **{f"{'out' if site == 'output' else 'hidden'}_kept": kept})
    assert counted == macs


def test_all_gates_open_cost_the_dense_network_plus_the_gate_networks() -> None:
    config = ConvFSENetConfig(site="both")
    assert ConvFSENet(config).macs_per_frame == 662_528 + 9 * 8 * (128 + 128 + 256)


def test_both_sites_multiply_counts_frame_by_frame() -> None:
    # All hidden channels with no output channel, then the reverse: the product of the averages would be wrong.
    config = ConvFSENetConfig(site="both", stacks=1, dilations=(1,), channels=4, hidden=6, gate_hidden=1)
    hidden = torch.tensor([True, False])[None, None].expand(1, 6, 2)
    out = torch.tensor([False, True])[None, None].expand(1, 4, 2)
    expected = 2 * 257 * 4 + (6 * (4 + 3 + 0) + 0) / 2 + 1 * (4 + 4 + 6)
    assert macs_from_gates(config, [BlockGates(hidden, out)]) == expected


def test_gates_that_differ_per_item_and_frame_are_averaged() -> None:
    config = ConvFSENetConfig(site="hidden", stacks=1, dilations=(1,))
    mask = torch.zeros(2, 256, 2, dtype=torch.bool)
    mask[0, :100, 0] = True
    mask[1, :60, 1] = True
    expected = 2 * 257 * 128 + (100 + 60) / 4 * 259 + 8 * (128 + 256)
    assert macs_from_gates(config, [BlockGates(mask, None)]) == expected


def test_a_static_mask_has_no_gate_network_to_count() -> None:
    assert ConvFSENet(site="hidden", gate_per="static").macs_per_frame == 662_528
