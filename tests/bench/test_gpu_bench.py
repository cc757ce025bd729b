"""The GPU benchmark's bookkeeping, on the processor, and the page made of its results."""

from __future__ import annotations

import json

import pytest
import torch

from dyncp_kernels.bench import gpu, gpu_report


class InstantTimer:
    """Runs a call once and gives fixed times: shorter for fewer open channels is not measured here."""

    def quantiles(self, call):
        call()
        return 1.0, 2.0, 3.0


@pytest.fixture
def bench(monkeypatch):
    """A benchmark on CPU tensors whose only provider of ours is the reference."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "DENSITIES", (0.0, 0.5))
    monkeypatch.setattr(gpu, "_graph", lambda call: call)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    made = object.__new__(gpu._Bench)
    made.timer = InstantTimer()
    made.ceilings = {"bytes": 4e12, "bfloat16": 8e14, "tf32": 4e14, "float32": 5e13}
    made.rows, made.left_out = [], []
    monkeypatch.setattr(gpu._Bench, "providers", staticmethod(lambda: ["triton"]))
    monkeypatch.setitem(gpu.backends.BACKENDS, "triton", gpu.backends.BACKENDS["reference"])
    with torch.inference_mode():
        yield made


def _results(bench):
    machine = {"date": "2026-01-01", "device": "GPU under test", "torch": "2.11"}
    rows = [gpu.asdict(row) for row in bench.rows]
    return {"format": gpu_report.FORMAT, "machine": machine, "ceilings": bench.ceilings, "left_out": [], "rows": rows}


def test_every_provider_agrees_with_the_dense_reference(bench):
    bench.block("float32", 2, 20, 16, 24)
    bench.step(3, 16, 24)
    assert bench.left_out == []
    assert all(row.p50_us == 2.0 for row in bench.rows), [(row.provider, row.gates, row.error) for row in bench.rows]
    assert {row.provider for row in bench.rows} == {"eager", "compile", "masked dense", "triton"}


def test_multiplications_are_those_of_the_open_channels(bench):
    bench.block("float32", 2, 20, 16, 24)
    for row in bench.rows:
        kept = round(row.density * 2 * 20 * 24)
        assert row.macs == kept * (2 * 16 + 3)
        least = 4 * 2 * 2 * 16 * 20
        assert row.bytes >= least
        assert row.roofline_us >= 1e6 * least / 4e12


def test_a_wrong_output_has_no_time(bench):
    call = lambda: torch.ones(4)  # noqa: E731
    common = {"op": "gated_conv", "provider": "triton", "dtype": "float32", "sizes": (1, 1, 4, 4)}
    bench.measure(call, torch.full((4,), 1.01), gates="none", mask=None, **common)
    assert [row.p50_us for row in bench.rows] == [None, None]


def test_page_shows_the_map_and_only_from_results(bench, tmp_path):
    bench.block("float32", 2, 20, 16, 24)
    results = _results(bench)
    page = gpu_report.page_of([results])
    assert "GPU under test" in page
    assert "no difference" in page
    assert "| gated_conv | float32 | 16/24 | 2 x 20 | utterance |" in page
    (tmp_path / "gpu.json").write_text(json.dumps(results))
    (tmp_path / "other.json").write_text("{}")
    assert len(gpu_report.find_results(tmp_path)) == 1
    assert gpu_report.table_of(results).count("\n") == len(bench.rows) + 1


def test_page_without_results_claims_nothing(tmp_path):
    page = tmp_path / "GPU.md"
    assert gpu_report.main([str(tmp_path), str(page)]) == 0
    assert "Nothing has been measured" in page.read_text()


def test_benchmark_without_a_gpu_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu.main([]) == 1
    assert "a CUDA device must be there" in capsys.readouterr().err
