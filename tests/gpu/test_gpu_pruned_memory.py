"""Proof by the memory manager that the step reads no row that is closed for all streams; for engines on the processor.

On a GPU memory cannot be forbidden row by row, so there the block suite only puts NaN into such rows.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from dyncp_kernels.ops.reference import gated_conv_step_reference

CPU_TESTS = Path(__file__).resolve().parent.parent / "ops" / "test_pruned_rows_are_not_read.py"
Pages = runpy.run_path(str(CPU_TESTS))["Pages"]


@pytest.mark.parametrize("streams", [1, 17])
@pytest.mark.parametrize("site", ["hidden", "output"])
def test_step_reads_no_row_that_is_closed_for_all_streams(engine, streams, site):
    channels, hidden = 12, 40
    rows = hidden if site == "hidden" else channels
    gate = torch.rand(streams, rows) < 0.5
    closed = torch.rand(rows) < 0.5
    gate[:, closed] = False
    pruned = (~gate.any(0)).nonzero()[:, 0]
    assert len(pruned) > 2
    w_in, w_out = torch.randn(hidden, channels), torch.randn(channels, hidden)
    rest = [torch.randn(hidden), torch.randn(hidden, 3), None]
    gates = [gate, None] if site == "hidden" else [None, gate]
    x, history = torch.randn(streams, channels), torch.randn(streams, hidden, 2)
    expected, _ = gated_conv_step_reference(x, history, *gates, w_in, *rest, w_out, None)
    if site == "hidden":
        pages = [Pages(w_in), Pages(w_out.t())]
        w_in, w_out = pages[0].tensor, pages[1].tensor.t()
    else:
        pages = [Pages(w_out)]
        w_out = pages[0].tensor
    try:
        for page in pages:
            page.forbid(pruned)
        y, _ = engine.gated_conv_step(x, history, *gates, w_in, *rest, w_out, None)
    finally:
        for page in pages:
            page.allow()
    assert (y - expected).norm() <= 1e-5 * expected.norm()
