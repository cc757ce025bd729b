"""Proof by the memory manager: pruned rows lie on pages that may not be read, and the kernels run."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import pytest
import torch

from dyncp_kernels import ops

PROT_NONE = 0
PAGE = mmap.PAGESIZE
FRAMES = 100

pytestmark = [
    pytest.mark.usefixtures("needs_extension"),
    pytest.mark.skipif(sys.platform != "linux", reason="mprotect through ctypes is written for Linux"),
]


class Pages:
    """A float32 matrix (rows, columns) whose every row has pages of its own."""

    def __init__(self, values: torch.Tensor):
        rows, columns = values.shape
        self._stride = -(-columns * 4 // PAGE) * PAGE
        self._memory = mmap.mmap(-1, rows * self._stride)
        flat = torch.frombuffer(self._memory, dtype=torch.float32)
        self.tensor = flat.as_strided((rows, columns), (self._stride // 4, 1))
        self.tensor.copy_(values)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def _set(self, row: int, protection: int) -> None:
        address = self.tensor.data_ptr() + row * self._stride
        result = self._libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(self._stride), protection)
        assert result == 0, f"mprotect: errno {ctypes.get_errno()}"

    def forbid(self, rows: torch.Tensor) -> None:
        """No access to these rows from now on."""
        for row in rows.tolist():
            self._set(row, PROT_NONE)

    def allow(self) -> None:
        """Access to all rows again."""
        for row in range(self.tensor.shape[0]):
            self._set(row, mmap.PROT_READ | mmap.PROT_WRITE)


def gates(kind, channels, density):
    """Gates below the crossover, and the channels that they prune at all frames."""
    generator = torch.Generator().manual_seed(5)
    kept = torch.rand(channels, 1, generator=generator) < density
    if kind == "constant":
        gate = kept
    elif kind == "random":
        gate = kept & (torch.rand(channels, FRAMES, generator=generator) < 0.3)
    else:
        # Each channel that is kept opens once and closes once.
        bounds = torch.randint(0, FRAMES, (2, channels, 1), generator=generator).sort(0).values
        frames = torch.arange(FRAMES)
        gate = kept & (bounds[0] <= frames) & (frames <= bounds[1])
    return gate[None], (~gate.any(1)).nonzero()[:, 0]


@pytest.mark.parametrize("strategy", ["automatic", "tile", "frames"])
@pytest.mark.parametrize("kind", ["constant", "random", "slow"])
def test_hidden_site(make_block, assert_close, each_instruction_set, offline_strategy, strategy, kind):
    block = make_block(1, 32, 64, FRAMES, site="hidden")
    t = block.tensors
    t["hidden_gate"], pruned = gates(kind, 64, 0.25)
    assert len(pruned) > 40
    expected = ops.gated_conv_reference(*block.args)
    w_in, w_out = Pages(t["w_in"]), Pages(t["w_out"].t())
    t["w_in"], t["w_out"] = w_in.tensor, w_out.tensor.t()
    try:
        w_in.forbid(pruned)
        w_out.forbid(pruned)
        with offline_strategy(strategy):
            y = ops.gated_conv(*block.args)
    finally:
        w_in.allow()
        w_out.allow()
    assert_close("y", expected, y, 1e-5)


@pytest.mark.parametrize("strategy", ["automatic", "tile", "frames"])
@pytest.mark.parametrize("kind", ["constant", "random", "slow"])
def test_output_site(make_block, assert_close, each_instruction_set, offline_strategy, strategy, kind):
    block = make_block(1, 32, 64, FRAMES, site="output")
    t = block.tensors
    t["out_gate"], pruned = gates(kind, 32, 0.25)
    assert len(pruned) > 15
    expected = ops.gated_conv_reference(*block.args)
    w_out = Pages(t["w_out"])
    t["w_out"] = w_out.tensor
    try:
        w_out.forbid(pruned)
        with offline_strategy(strategy):
            y = ops.gated_conv(*block.args)
    finally:
        w_out.allow()
    assert_close("y", expected, y, 1e-5)


@pytest.mark.parametrize("site", ["hidden", "output"])
def test_one_frame(make_block, assert_close, each_instruction_set, site):
    block = make_block(1, 32, 64, 1, site=site)
    hidden, out = (gate if gate is None else gate[:, :, 0] for gate in block.args[1:3])
    gate = hidden if site == "hidden" else out
    pruned = (~gate[0]).nonzero()[:, 0]
    rest = block.args[3:]
    history = torch.randn(1, 64, 2)
    frame = block.tensors["x"][:, :, 0]
    expected, _ = ops.gated_conv_step_reference(frame, history, hidden, out, *rest)
    pages = [Pages(rest[0]), Pages(rest[4].t() if site == "hidden" else rest[4])]
    rest[0] = pages[0].tensor
    rest[4] = pages[1].tensor.t() if site == "hidden" else pages[1].tensor
    try:
        for page in pages if site == "hidden" else pages[1:]:
            page.forbid(pruned)
        y, _ = ops.gated_conv_step(frame, history, hidden, out, *rest)
    finally:
        for page in pages:
            page.allow()
    assert_close("y", expected, y, 1e-5)


def test_reading_a_forbidden_row_would_end_the_process():
    # Otherwise the tests above would prove nothing.
    code = f"""
import sys, torch
sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
from test_pruned_rows_are_not_read import Pages
from dyncp_kernels import ops
pages = Pages(torch.zeros(8, 8))
pages.forbid(torch.tensor([3]))
print("ready", flush=True)
ops.pointwise(torch.zeros(1, 8, 5), pages.tensor, None)
print("read it", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "ready\n", done.stderr
    assert done.returncode < 0
