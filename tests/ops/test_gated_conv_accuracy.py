"""The block at the geometry of the paper: as exact as float32 can be, on every instruction set, whatever the values."""

from __future__ import annotations

import pytest
import torch

from dyncp_kernels import ops


def in_float64(block):
    tensors = {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in block.tensors.items()
    }
    return type(block)(tensors, block.options)


# Kernels treat slopes from 0 to 1 in a way of their own, and no slope too.
SLOPES = (-0.3, 0.25, None)


def with_slope(block, slope):
    for name in ("slope_in", "slope_dw"):
        block.tensors[name] = None if slope is None else torch.tensor(slope)
    return block


def paper_block(make_block, site, *, batch=1, frames=600, slope=0.25, **options):
    """128 / 256 channels, each gate with a density of its own: some open at few frames of a tile, some at most."""
    block = with_slope(make_block(batch, 128, 256, frames, site=site, dilation=4, **options), slope)
    for name in ("hidden_gate", "out_gate"):
        gate = block.tensors[name]
        if gate is not None:
            density = torch.linspace(-0.1, 1.1, gate.shape[1])[None, :, None]
            gate.copy_(torch.rand(gate.shape, generator=torch.Generator().manual_seed(2)) < density)
    return block


@pytest.mark.parametrize("site", ["none", "hidden", "output", "both"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("slope", SLOPES)
def test_error_stays_at_the_rounding_of_float32(make_block, assert_close, each_instruction_set, site, causal, slope):
    block = paper_block(make_block, site, causal=causal, slope=slope).poison()
    reference = in_float64(block)
    expected = ops.gated_conv_reference(*reference.args, **reference.options)
    assert_close("y", expected, ops.gated_conv(*block.args, **block.options), 4e-7)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 17, 50, 100, 147])
@pytest.mark.parametrize("site", ["none", "hidden", "output", "both"])
def test_a_few_frames_behind_whole_vectors(make_block, assert_close, each_instruction_set, site, frames):
    for channels, hidden in ((128, 256), (33, 65)):
        block = with_slope(make_block(2, channels, hidden, frames, site=site, density=0.9), 0.25).poison()
        reference = in_float64(block)
        expected = ops.gated_conv_reference(*reference.args, **reference.options)
        assert_close("y", expected, ops.gated_conv(*block.args, **block.options), 4e-7)


@pytest.mark.parametrize("sizes", [(33, 65, 31), (40, 72, 17), (257, 41, 9), (7, 8, 3), (1, 1, 1), (64, 97, 64)])
@pytest.mark.parametrize("causal", [True, False])
def test_no_size_need_be_a_multiple_of_what_the_processor_takes(
    make_block, assert_close, each_instruction_set, sizes, causal
):
    channels, hidden, outputs = sizes
    options = {"out_channels": outputs, "causal": causal, "residual": channels == outputs}
    for density, slope in zip((0.1, 0.5, 0.9), SLOPES, strict=True):
        block = with_slope(make_block(2, channels, hidden, 139, density=density, **options), slope)
        reference = in_float64(block.poison())
        expected = ops.gated_conv_reference(*reference.args, **reference.options)
        assert_close("y", expected, ops.gated_conv(*block.args, **block.options), 4e-7)


def test_a_nan_with_a_small_payload_is_a_nan(make_block, each_instruction_set):
    block = paper_block(make_block, "none", frames=100)
    block.tensors["x"][0, 3, 50] = torch.tensor(0x7F800001, dtype=torch.int32).view(torch.float32)
    frames = torch.isnan(ops.gated_conv(*block.args, **block.options)).all(1)[0].nonzero()[:, 0].tolist()
    assert frames == [50, 54, 58]


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_error_does_not_depend_on_the_scale_of_the_values(make_block, assert_close, each_instruction_set, scale):
    block = paper_block(make_block, "hidden", frames=100)
    for name in ("x", "b_in", "b_dw", "b_out"):
        block.tensors[name] *= scale
    reference = in_float64(block)
    expected = ops.gated_conv_reference(*reference.args, **reference.options) / scale
    assert_close("y", expected, ops.gated_conv(*block.args, **block.options).double() / scale, 4e-7)


@pytest.mark.parametrize("site", ["none", "hidden", "both"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3.4e38])
def test_values_beyond_float32_turn_up_where_the_reference_has_them(make_block, each_instruction_set, site, value):
    # 3.4e38 is finite in float32 but above the largest bfloat16.
    block = paper_block(make_block, site, frames=100)
    block.tensors["x"][0, 5, 40] = value
    block.tensors["w_in"][:, 5] = 0.0  # 0 * inf is NaN in every hidden channel, 0 * 3.4e38 is 0
    block.tensors["w_in"][200, 5] = 1e-32
    expected = ops.gated_conv_reference(*block.args, **block.options)
    y = ops.gated_conv(*block.args, **block.options)
    assert torch.equal(torch.isfinite(y), torch.isfinite(expected))
    error = torch.where(torch.isfinite(expected), (y - expected).abs(), 0.0)
    largest = torch.where(torch.isfinite(expected), expected.abs(), 0.0).amax(1, keepdim=True)
    assert (error <= 1e-5 * (1 + largest)).all()


def test_a_nan_weight_of_a_channel_open_at_few_frames_reaches_these_frames_only(make_block, each_instruction_set):
    block = paper_block(make_block, "hidden", frames=200)
    block.tensors["hidden_gate"][0, 9] = False
    block.tensors["hidden_gate"][0, 9, [70, 131]] = True
    block.tensors["w_out"][:, 9] = float("nan")
    frames = torch.isnan(ops.gated_conv(*block.args, **block.options)).any(1)[0].nonzero()[:, 0].tolist()
    assert frames == [70, 131]


def test_long_clips_of_several_items_do_not_depend_on_the_number_of_threads(
    make_block, each_instruction_set, with_threads
):
    block = paper_block(make_block, "both", batch=2, frames=1100)
    results = with_threads((1, 2, 5), lambda: ops.gated_conv(*block.args, **block.options))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("site", ["hidden", "output", "both"])
def test_each_item_and_each_stretch_of_time_has_its_own_channels(make_block, assert_close, each_instruction_set, site):
    # Most channels are closed for a hundred frames, others in each item: what one item leaves open is no help for
    # the next.
    block = with_slope(make_block(3, 128, 256, 300, site=site, dilation=4), 0.25)
    for name in ("hidden_gate", "out_gate"):
        gate = block.tensors[name]
        if gate is not None:
            shape = (gate.shape[0], gate.shape[1], 3)
            kept = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.1
            kept[1, :, 1] = False
            gate.copy_(kept.repeat_interleave(100, 2))
    expected = ops.gated_conv_reference(*block.args, **block.options)
    assert_close("y", expected, ops.gated_conv(*block.args, **block.options), 1e-6)
