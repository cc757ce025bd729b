"""What the block suite runs on.

DYNCP_TEST_ENGINE=interpreter runs it on the Triton interpreter (with TRITON_INTERPRET=1) and
DYNCP_TEST_ENGINE=emulator on the CUDA C++ kernels executed on the processor (DYNCP_EMULATOR is the library); without
it the suite needs a GPU and runs on every back-end there.
"""

from __future__ import annotations

import os

import pytest
import torch

from dyncp_kernels.ops import backends

ENGINE = os.environ.get("DYNCP_TEST_ENGINE", "device")
DEVICE_BACKENDS = ("triton", "cuda")


class Engine:
    """Runs the ops, and says where tensors belong."""

    def __init__(self, name):
        self.name = name
        self.device = "cpu" if name in ("interpreter", "emulator") else "cuda"

    def __getattr__(self, op):
        if self.name == "interpreter":
            from torch._library.triton import set_wrap_triton_enabled

            def run(*args, **options):
                leading = 1 if op == "gated_conv" else 2
                filled = args + (None,) * (leading + 10 - len(args))
                with set_wrap_triton_enabled(False):
                    return backends.triton_implementation(op)(*filled, **options)

            return run
        if self.name == "emulator":
            return getattr(torch.ops.dyncp_cuda, op)

        def run_on_device(*args, **options):
            with backends.use(self.name):
                return getattr(torch.ops.dyncp, op)(*args, **options)

        return run_on_device


@pytest.fixture(params=DEVICE_BACKENDS if ENGINE == "device" else (ENGINE,))
def engine(request):
    """The back-end under test; memory that nothing has written yet holds NaN."""
    if ENGINE == "device":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        reason = backends.BACKENDS[request.param].unavailable()
        if reason is not None:
            pytest.skip(f"{request.param}: {reason}")
    if ENGINE == "emulator":
        torch.ops.load_library(os.environ["DYNCP_EMULATOR"])
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield Engine(request.param)
    torch.use_deterministic_algorithms(False)


# Without a GPU only the suites that need none are collected; they run the block suite in processes of their own.
collect_ignore = (
    ["test_gpu_block.py", "test_gpu_runtime.py"] if ENGINE == "device" and not torch.cuda.is_available() else []
)
if ENGINE == "device":
    collect_ignore.append("test_gpu_pruned_memory.py")
