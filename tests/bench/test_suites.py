from dataclasses import replace

import numpy as np
import pytest
import torch

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.bench import suites
from dyncp_kernels.bench.engine_driver import build_driver, reason_for_no_driver, run_masks, write_case
from dyncp_kernels.bench.masks import write_recorded
from dyncp_kernels.bench.suites import SUITES, Case, Plan, run_cases, run_suites
from dyncp_kernels.bench.workload import synthetic_workload
from dyncp_kernels.nn import ConvFSENetConfig

pytestmark = pytest.mark.skipif(not extension_loaded(), reason="needs the native extension")

CONFIG = ConvFSENetConfig(channels=16, hidden=24, stacks=1)
RIVALS = {"PyTorch eager", "ONNX Runtime", "OpenVINO"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    for module in ("onnx", "onnxruntime", "openvino"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("recorded")
    held = np.random.default_rng(0).random((3, 24, 1)) < 0.25
    write_recorded([list(np.repeat(held, 40, axis=2))], folder / "hidden_25.npz", 40)
    plan = Plan(0.05, 1, True, folder, CONFIG, stream_frames=60, clips=((2, 20),), other_bytes=2**20)
    threads = torch.get_num_threads()
    results = run_suites(list(SUITES), plan)
    assert torch.get_num_threads() == threads
    return results


def test_every_output_is_correct(results):
    assert [row for row in results.rows if not row.correct] == []


@pytest.mark.parametrize("suite", ["streaming", "offline"])
def test_engines_sites_densities_and_gates_are_all_there(results, suite):
    rows = [row for row in results.rows if row.suite == suite]
    assert RIVALS | {"dyncp static"} <= {row.engine for row in rows if row.site == "none"}
    gated = {(row.site, row.density, row.gates) for row in rows if row.engine == "dyncp gated"}
    assert gated == {
        ("output", 0.25, "random"),
        ("output", 1.0, "random"),
        ("hidden", 0.25, "random"),
        ("hidden", 1.0, "random"),
        ("hidden", 0.25, "recorded"),
    }
    masked = {(row.site, row.gates) for row in rows if row.engine.startswith("masked dense")}
    assert masked == {("output", "random"), ("hidden", "random"), ("hidden", "recorded")}


def test_each_pruned_network_meets_narrower_dense_ones_of_equal_macs_and_time(results):
    names = [row.engine for row in results.rows if row.suite == "streaming" and row.engine.startswith("narrower")]
    twins = ("output 25% random", "hidden 25% random", "hidden 25% recorded")
    assert all(
        sum(name.endswith(f"{what} of {twin}") for name in names) == 1 for what in ("MACs", "time") for twin in twins
    )


def test_savings_are_against_the_static_network_of_the_same_dtype(results):
    rows = [row for row in results.rows if row.suite == "precision"]
    assert {row.dtype for row in rows} == {"float32", "int24", "float16", "bfloat16", "int8"}
    static = {row.dtype: row for row in rows if row.engine == "dyncp static"}
    for row in rows:
        if row.engine in RIVALS:
            continue
        base = static[row.dtype]
        assert row.saving_macs == pytest.approx(1 - row.macs_per_frame / base.macs_per_frame)
        assert row.saving_time == pytest.approx(1 - row.p50_us_per_frame / base.p50_us_per_frame)
    assert all(row.saving_time is None for row in results.rows if row.engine in RIVALS)


def test_narrower_weights_meet_other_engines_and_narrower_dense_networks_of_the_same_dtype(results):
    rows = [row for row in results.rows if row.suite == "precision"]
    assert {row.engine for row in rows if row.dtype == "int8" and row.engine in RIVALS} == {"ONNX Runtime", "OpenVINO"}
    gated = {(row.dtype, f"{row.site} 25% {row.gates}") for row in rows if row.engine == "dyncp gated"}
    assert gated == {(row.dtype, row.engine.partition(" of ")[2]) for row in rows if row.engine.startswith("narrower")}


@pytest.mark.skipif(reason_for_no_driver() is not None, reason="needs a build in the source folder")
@pytest.mark.parametrize("suite", ["native", "native_cold"])
def test_a_program_without_python_runs_the_same_networks(results, suite):
    rows = [row for row in results.rows if row.suite == suite]
    assert {row.dtype for row in rows} == {"float32", "bfloat16", "int8"}
    gated = {(row.dtype, f"{row.site} 25% {row.gates}") for row in rows if row.engine == "dyncp gated"}
    assert gated == {(row.dtype, row.engine.partition(" of ")[2]) for row in rows if row.engine.startswith("narrower")}
    assert len(gated) == 9
    # Seven rounds at least, the first one aside.
    assert all(row.calls >= (280 if suite == "native" else 56) and row.p50_us_per_frame > 0 for row in rows)
    assert all(row.realised is not None for row in rows if row.engine == "dyncp gated")


@pytest.mark.skipif(reason_for_no_driver() is not None, reason="needs a build in the source folder")
def test_a_wrong_mask_of_the_program_without_python_is_seen(tmp_path):
    work, other = (synthetic_workload(replace(CONFIG, hidden=hidden), 1, 20) for hidden in (24, 16))
    driver = build_driver(tmp_path)
    write_case(tmp_path / "case", work, "float32")
    assert run_masks(driver, tmp_path / "case", work, "float32")[0].max_error < 1e-5
    assert not run_masks(driver, tmp_path / "case", other, "float32")[0].correct
    (tmp_path / "case" / "packed").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="engine_driver failed"):
        run_masks(driver, tmp_path / "case", work, "float32")


def test_suites_without_python_are_left_out_with_a_reason_where_they_cannot_be_built(monkeypatch):
    monkeypatch.setattr(suites, "reason_for_no_driver", lambda: "no compiler")
    results = run_suites(["native"], Plan(config=CONFIG))
    assert (results.rows, results.notes) == ([], ["native left out: no compiler"])
    monkeypatch.undo()
    if reason_for_no_driver() is None:
        assert run_suites(["native"], Plan(config=CONFIG, threads=2)).notes == [
            "native left out: a stream takes one thread"
        ]


def test_chunks_are_rows_of_several_frames_a_call(results):
    rows = [row for row in results.rows if row.suite == "chunks"]
    assert {row.engine for row in rows} == {"dyncp static", "ONNX Runtime", "OpenVINO"}
    assert {row.frames for row in rows} == {8}
    assert "chunks: gated rows left out, the shipped networks are of another geometry" in results.notes


def test_streams_are_rows_of_a_frame_of_each_a_call(results):
    rows = [row for row in results.rows if row.suite == "streams"]
    assert {row.engine for row in rows} == {"dyncp static", "PyTorch eager", "ONNX Runtime", "OpenVINO"}
    assert {(row.batch, row.frames) for row in rows} == {(4, 1)}
    assert "streams: gated rows left out, the shipped networks are of another geometry" in results.notes


def test_cold_rows_have_rivals_narrower_nets_and_dtypes_beside_them(results):
    rows = [row for row in results.rows if row.suite == "cold"]
    assert RIVALS | {"dyncp static", "dyncp gated"} <= {row.engine for row in rows}
    assert {row.dtype for row in rows if row.engine == "dyncp gated"} == {"float32", "bfloat16", "int8"}
    gated = {(row.site, row.gates) for row in rows if row.engine == "dyncp gated"}
    assert gated == {("output", "random"), ("hidden", "random"), ("hidden", "recorded")}
    assert sum(row.engine.startswith("narrower") for row in rows) == len(gated)
    assert "cold: 1 MB of other data were read before each call" in results.notes


def test_the_full_path_stands_beside_the_network_alone(results):
    engines = [row.engine for row in results.rows if row.suite == "full_path"]
    for path in ("", ", samples", ", enhancer"):
        assert engines.count(f"dyncp static{path}") == 1
        assert engines.count(f"dyncp gated{path}") == 3


def test_savings_of_samples_are_against_the_static_network_on_samples(results):
    rows = {row.engine: row for row in results.rows if row.suite == "full_path" and row.gates != "random"}
    for path in ("", ", samples", ", enhancer"):
        base, gated = rows[f"dyncp static{path}"], rows[f"dyncp gated{path}"]
        assert gated.saving_time == pytest.approx(1 - gated.p50_us_per_frame / base.p50_us_per_frame)
        assert base.saving_time == 0


def test_what_was_left_out_is_said(results):
    notes = "\n".join(results.notes)
    assert "torch.compile left out" in notes
    assert "no recorded masks for output at 25%" in notes
    assert "recorded masks hidden_25.npz, 60 frames: " in notes
    assert "0.00% of the gates flip" in notes


def test_a_wrong_engine_gets_a_time_but_no_saving():
    from dyncp_kernels.bench.engines.dyncp import Stream

    class Hasty(Stream):
        def __call__(self, frame):
            self._out.fill_(0.5)

    work = synthetic_workload(CONFIG, 1, 20)
    cases = [
        Case("streaming", "dyncp static", work, lambda: Stream(work, 1)),
        Case("streaming", "dyncp gated", work, lambda: Hasty(work, 1)),
    ]
    threads = torch.get_num_threads()
    good, bad = run_cases(cases, Plan(config=CONFIG), 0.02)
    assert good.correct
    assert good.saving_time == 0.0
    assert not bad.correct
    assert bad.p50_us_per_frame > 0
    assert bad.saving_time is bad.realised is None
    # A wrong baseline spoils all savings.
    swapped = [replace(cases[0], make=cases[1].make), replace(cases[1], make=cases[0].make)]
    bad, good = run_cases(swapped, Plan(config=CONFIG), 0.02)
    assert good.correct
    assert bad.saving_time is good.saving_time is None
    torch.set_num_threads(threads)


def test_unknown_suites_are_refused():
    with pytest.raises(ValueError, match=r"suites must be of \['streaming'"):
        run_suites(["all"], Plan())
