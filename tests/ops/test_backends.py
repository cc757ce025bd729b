"""The choice of a back-end for CUDA tensors, which needs no GPU to be made."""

from __future__ import annotations

import pytest
import torch

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
