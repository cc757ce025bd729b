"""The choice of a back-end for CUDA tensors, which needs no GPU to be made."""

from __future__ import annotations

import pytest
import torch

from dyncp_kernels._tf32 import tf32_allowed
from dyncp_kernels.ops import backends


def _pretend(monkeypatch, available):
    """Only the named back-ends can run; the environment names none."""
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    for name, backend in list(backends.BACKENDS.items()):
        reason = None if name in available else f"{name} is missing"
        changed = backends.Backend(name, backend.summary, lambda reason=reason: reason, backend.implementation)
        monkeypatch.setitem(backends.BACKENDS, name, changed)


@pytest.mark.parametrize(
    ("available", "expected"),
    [(("triton", "cuda", "reference"), "triton"), (("cuda", "reference"), "cuda"), (("reference",), "reference")],
)
def test_first_available_back_end_runs(monkeypatch, available, expected):
    _pretend(monkeypatch, available)
    assert backends.chosen() == expected


def test_argument_wins_over_environment(monkeypatch):
    _pretend(monkeypatch, ("triton", "cuda", "reference"))
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    assert backends.chosen() == "cuda"
    with backends.use("reference"):
        assert backends.chosen() == "reference"
    assert backends.chosen() == "cuda"


def test_float64_runs_on_the_reference(monkeypatch):
    _pretend(monkeypatch, ("triton", "reference"))
    assert backends.chosen(torch.float64) == "reference"


def test_back_end_that_cannot_run_is_an_error_with_the_reason(monkeypatch):
    _pretend(monkeypatch, ("reference",))
    monkeypatch.setenv(backends.VARIABLE, "cuda")
    with pytest.raises(RuntimeError, match=r"the back-end cuda must be able to run here .*cuda is missing"):
        backends.chosen()


def test_library_that_does_not_load_says_what_is_missing_and_not_where_it_lies(monkeypatch, tmp_path):
    library = tmp_path / "_C_cuda.abi3.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(backends, "CUDA_LIBRARY", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    reason = backends._cuda_unavailable.__wrapped__()
    assert reason.startswith("_C_cuda.abi3.so: ")
    assert str(tmp_path) not in reason


def test_unknown_name_is_an_error(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"must be one of triton, cuda, reference .*'fast'"):
        backends.chosen()
    with pytest.raises(ValueError, match="use: the back-end must be one of"), backends.use("fast"):
        pass


def test_table_names_every_back_end_and_why_it_cannot_run(monkeypatch):
    _pretend(monkeypatch, ("reference",))
    rows = {name: state for name, state, _ in backends.table()}
    assert rows == {"triton": "triton is missing", "cuda": "cuda is missing", "reference": "available"}


@pytest.fixture
def precision():
    """The settings of float32 products, put back afterwards."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("how", ["set_float32_matmul_precision", "allow_tf32", "fp32_precision"])
def test_tf32_is_used_however_torch_was_told_to_allow_it(precision, how):
    assert not tf32_allowed()
    if how == "set_float32_matmul_precision":
        torch.set_float32_matmul_precision("high")
    else:
        setattr(torch.backends.cuda.matmul, how, True if how == "allow_tf32" else "tf32")
    assert tf32_allowed()
    triton_sizes = pytest.importorskip("dyncp_kernels.triton.tile_sizes", reason="triton is not installed")
    assert triton_sizes.precision_of(torch.float32) == "tf32"
