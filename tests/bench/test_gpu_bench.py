"""The GPU benchmark's bookkeeping, on the processor, and the page made of its results."""

from __future__ import annotations

import json

import pytest
import torch

from dyncp_kernels.bench import gpu, gpu_report

STATIC = {"op": "gated_conv", "provider": "triton", "dtype": "float32", "sizes": (1, 1, 4, 4)}
STATIC |= {"site": "none", "gates": "none", "mask": None}


def gpu_masks(*sizes):
    """The benchmark's masks, on the processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "DEVICE", "cpu")
        return list(gpu._masks(*sizes))


class InstantTimer:
    """Runs a call once and gives fixed times: shorter for fewer open channels is not measured here."""

    end = float("inf")

    def quantiles(self, call):
        call()
        return 1.0, 2.0, 3.0


@pytest.fixture
def bench(monkeypatch):
    """A benchmark on CPU tensors whose only provider of ours is the reference."""
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "DENSITIES", (0.0, 0.5))
    monkeypatch.setattr(gpu, "_graph", lambda call: (call, call()))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    made = object.__new__(gpu._Bench)
    made.timer = InstantTimer()
    made.ceilings = {"bytes": 4e12, "bfloat16": 8e14, "tf32": 4e14, "float32": 5e13}
    made.rows, made.left_out, made.providers, made.device_failed = [], [], ["triton"], False
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
    bench.autotuned("float32", 2, 20, 16, 24)
    assert bench.rows[-1].provider == "max-autotune"
    bench.timer.end = 0.0
    bench.autotuned("float32", 2, 20, 16, 24)
    assert bench.left_out == ["max-autotune float32 (2, 20, 16, 24): too little time left"]


def test_multiplications_are_those_of_the_open_channels(bench):
    bench.block("float32", 2, 20, 16, 24)
    for row in bench.rows:
        if row.site == "output":
            kept = round(row.density * 2 * 20 * 16)
            assert row.macs == kept * 24 + 2 * 20 * 24 * (16 + 3)
        else:
            kept = round(row.density * 2 * 20 * 24)
            assert row.macs == kept * (2 * 16 + 3)
        least = 4 * 2 * 2 * 16 * 20
        assert row.bytes >= least
        assert row.roofline_us >= 1e6 * least / 4e12


def test_a_wrong_output_has_no_time(bench):
    call = lambda: torch.ones(4)  # noqa: E731
    bench.measure(call, torch.full((4,), 1.01), **STATIC)
    assert [row.p50_us for row in bench.rows] == [None, None]
    bench.measure(lambda: torch.full((4,), float("nan")), torch.ones(4), **STATIC)
    assert [(row.p50_us, row.error) for row in bench.rows[2:]] == [(None, None)] * 2
    json.dumps(_results(bench), allow_nan=False)


def test_a_graph_is_checked_by_what_its_replay_leaves(bench, monkeypatch):
    output = torch.ones(4)
    monkeypatch.setattr(gpu, "_graph", lambda call: (lambda: output.fill_(2.0), output))
    bench.measure(lambda: torch.ones(4), torch.ones(4), **STATIC)
    assert [(row.launch, row.p50_us) for row in bench.rows] == [("call", 2.0), ("graph", None)]


def test_what_fails_is_left_out_and_the_rest_measured(bench):
    class CompilerError(Exception):
        pass

    def call():
        raise CompilerError("too many registers\nand more")

    bench.measure(call, torch.ones(4), **STATIC)
    assert bench.rows == []
    assert len(bench.left_out) == 2
    assert "CompilerError: too many registers" in bench.left_out[0]
    assert not bench.device_failed


def test_nothing_is_measured_on_a_device_that_failed(bench, monkeypatch):
    monkeypatch.setattr(gpu, "_device_works", lambda: False)

    def call():
        raise RuntimeError("an illegal memory access was encountered")

    saved = []
    steps = [lambda b: b.measure(call, torch.ones(4), **STATIC)]
    bench.timer.is_over = lambda: False
    later = [gpu.partial(gpu._Bench.step, streams=3, channels=16, hidden=24)]
    gpu._work_through(bench, steps + later, lambda: saved.append(len(bench.left_out)))
    assert bench.rows == []
    assert bench.left_out[-1] == "step streams 3 channels 16 hidden 24: the device had failed"
    assert saved == [1]


def test_plan_holds_every_listed_size_and_type():
    keys = {(entry.func.__name__, *entry.keywords.values()) for entry in gpu._plan()}
    for width in ((128, 256), (256, 512), (512, 1024), (512, 2048)):
        for size in ((1, 500), (32, 250), (256, 250)):
            for dtype in ("bfloat16", "tf32", "float32"):
                assert ("block", dtype, *size, *width) in keys
            assert ("autotuned", "bfloat16", *size, *width) in keys
    assert {key[1] for key in keys if key[0] == "step"} == {1, 16, 256, 4096}


def test_masks_hold_every_density_and_both_sites():
    kinds = [(site, gates) for site, gates, _ in gpu_masks(2, 128, 256, 30)]
    assert kinds.count(("hidden", "utterance")) == kinds.count(("hidden", "random")) == 6
    assert {("output", "utterance"), ("hidden", "recorded"), ("output", "recorded")} <= set(kinds)
    wide = {(site, gates): mask.shape for site, gates, mask in gpu_masks(2, 512, 2048, 30)}
    assert wide["hidden", "recorded"] == (2, 2048, 30)
    assert wide["output", "recorded"] == (2, 512, 30)


def test_page_shows_the_map_and_only_from_results(bench, tmp_path):
    bench.block("float32", 2, 20, 16, 24)
    results = _results(bench)
    page = gpu_report.page_of([results])
    assert "GPU under test" in page
    assert "no difference" in page
    assert "| gated_conv | float32 | 16/24 | 2 x 20 | hidden | utterance |" in page
    assert "| static block no slower than torch.compile | 1 of 1 |" in page
    assert "realised share of at least 0.7 | not measured |" in page
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
