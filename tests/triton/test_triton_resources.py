"""Every Triton kernel, compiled ahead of time for three GPU generations; its registers, spills and shared memory."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

# Shared memory that one block can have, in bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes of registers that a thread may keep in memory instead: a few values outside the inner loops.
SPILL_LIMIT = {"fused_block": 192, "depthwise_gradient": 32, "step": 32, "list_channels": 16, "pointwise": 32}

POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}

# Target, dtype, float32 precision, channels, hidden channels.
CONFIGURATIONS = [
    (80, torch.float32, "highest", 128, 256),
    (80, torch.bfloat16, "highest", 128, 256),
    (90, torch.bfloat16, "highest", 128, 256),
    (90, torch.bfloat16, "highest", 512, 1024),
    (100, torch.float32, "high", 128, 256),
    (100, torch.float16, "highest", 256, 512),
]


class Launches:
    """Records launches in place of running them; stands for `launches.kernel`."""

    def __init__(self):
        self.calls = []

    def __call__(self, function):
        return _Recorder(function, self.calls)


class _Recorder:
    def __init__(self, function, calls):
        self.function = function
        self.calls = calls

    def __getitem__(self, grid):
        return lambda *args, **options: self.calls.append((self.function, args, options))


def _record(monkeypatch, dtype, channels, hidden, parts, batch=32):
    """The launches of a block with gates at both sites."""
    from dyncp_kernels.triton import block, gated_conv, gated_conv_backward, gated_conv_step, launches

    recorded = Launches()
    for module in (launches, block, gated_conv, gated_conv_backward, gated_conv_step):
        monkeypatch.setattr(module, "kernel", recorded)

    def empty(*shape, kind=dtype):
        return torch.empty(*shape, dtype=kind, device="meta")

    frames = 250
    x = empty(batch, channels, frames)
    gates = [empty(batch, rows, frames, kind=torch.bool) for rows in (hidden, channels)]
    weights = [empty(hidden, channels), empty(hidden), empty(hidden, 3), empty(hidden)]
    weights += [empty(channels, hidden), empty(channels), empty(1), empty(1)]
    if "forward" in parts:
        gated_conv.gated_conv(x, *gates, *weights, dilation=2)
    if "step" in parts:
        frame_gates = [gate[:, :, 0].contiguous() for gate in gates]
        step_arguments = (x[:, :, 0].contiguous(), empty(batch, hidden, 4), *frame_gates, *weights)
        gated_conv_step.gated_conv_step(*step_arguments, dilation=2)
        gated_conv_step.gated_conv_step_(*step_arguments, dilation=2)
    if "backward" in parts:
        gated_conv_backward.gated_conv_backward(empty(*x.shape), x, *gates, *weights, dilation=2)
    return recorded.calls


def _compile(function, args, options, target):
    """Compile one launch as Triton would: ones become constants, multiples of 16 are known to be such."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        value = args[index] if index < len(args) else options[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif function.params[index].is_constexpr or value == 1:
            signature[name] = "constexpr"
            constants[(index,)] = value
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    launch = {name: options[name] for name in ("num_warps", "num_stages") if name in options}
    source = ASTSource(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=launch)


def _usage(compiled, folder):
    """Registers, and bytes of stack, of a compiled kernel."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([str(tool), "-res-usage", str(path)], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, text
    return int(found[1]), int(found[2])


def resources(monkeypatch, folder, target, dtype, precision, channels, hidden, parts):
    """Name, registers, spilled bytes and shared memory of each kernel."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        calls = _record(monkeypatch, dtype, channels, hidden, parts)
    finally:
        torch.set_float32_matmul_precision(before)
    rows, seen = [], set()
    for function, args, options in calls:
        key = (function.__name__, str([a if not isinstance(a, torch.Tensor) else a.dtype for a in args]), str(options))
        if key in seen:
            continue
        seen.add(key)
        compiled = _compile(function, args, options, target)
        rows.append((function.__name__, *_usage(compiled, folder), compiled.metadata.shared))
    return rows


@pytest.mark.parametrize(
    ("target", "dtype", "precision", "channels", "hidden"),
    CONFIGURATIONS,
    ids=[f"sm_{c[0]}-{str(c[1])[6:]}-{c[2]}-{c[3]}" for c in CONFIGURATIONS],
)
def test_kernels_compile_within_the_limits(monkeypatch, tmp_path, target, dtype, precision, channels, hidden):
    is_paper_width = channels == 128
    everything = is_paper_width and (target != 80 or dtype == torch.float32)
    parts = ("forward", "step", "backward") if everything else ("forward",)
    rows = resources(monkeypatch, tmp_path, target, dtype, precision, channels, hidden, parts)
    is_fused = is_paper_width and dtype != torch.float32
    expected = {"list_channels", "fused_block"} if is_fused else {"list_channels", "pointwise", "depthwise"}
    if not is_fused and dtype != torch.float32:
        expected.add("pad_frames")
    if everything:
        expected |= {"step", "pad_frames", "pointwise", "depthwise_gradient", "expansion_gradient", "weight_gradient"}
    assert {row[0] for row in rows} == expected
    for name, registers, spilled, shared in rows:
        assert registers <= 255, name
        assert spilled <= SPILL_LIMIT.get(name, 0), f"{name}: {spilled} bytes spilled"
        assert shared <= SHARED_LIMIT[target], name


@pytest.mark.parametrize("streams", [1, 16, 256, 4096])
def test_step_of_any_number_of_streams_is_one_launch(monkeypatch, tmp_path, streams):
    calls = _record(monkeypatch, torch.float32, 128, 256, ("step",), batch=streams)
    # Once with other memory for the new history, once with the same.
    assert [function.__name__ for function, _, _ in calls] == ["step", "step"]
    for call in calls:
        compiled = _compile(*call, 90)
        assert _usage(compiled, tmp_path)[1] <= SPILL_LIMIT["step"]
        assert compiled.metadata.shared <= SHARED_LIMIT[90]


def test_sanitizer_watches_every_kernel(monkeypatch):
    sanitize = runpy.run_path(str(Path(__file__).resolve().parents[1] / "gpu" / "sanitize.py"))
    launched = set()
    for dtype in (torch.bfloat16, torch.float32):
        calls = _record(monkeypatch, dtype, 128, 256, ("forward", "step", "backward"))
        launched |= {function.__name__ for function, _, _ in calls}
    assert len(launched) >= 9
    assert [name for name in launched if not any(part in name for part in sanitize["KERNELS"])] == []
