import functools
from dataclasses import replace

import pytest

from dyncp_kernels._extension import extension_loaded
from dyncp_kernels.bench import suites
from dyncp_kernels.bench.row import Results, Row, read_results, write_results
from dyncp_kernels.nn import ConvFSENetConfig, macs_per_frame

typer_testing = pytest.importorskip("typer.testing")
pytest.importorskip("matplotlib")

STATIC = Row(
    *("streaming", "dyncp static", "none", 1.0, "none", "float32"),
    *(1, 1, 1, 600_000.0, 60.0, 70.0, 0.0, 0.0, None, True, 1e-7),
)


def dyncp(*arguments):
    from dyncp_kernels.cli import build_app

    return typer_testing.CliRunner(env={"COLUMNS": "220"}).invoke(build_app(), [str(a) for a in arguments])


def test_stored_results_are_shown_again_and_the_report_is_written_beside_them(tmp_path):
    write_results(Results({"processor": "p"}, [STATIC, replace(STATIC, engine="OpenVINO")]), tmp_path / "results")
    result = dyncp("bench", "--report", tmp_path / "results.json")
    assert result.exit_code == 0, result.output
    assert "OpenVINO" in result.output
    assert {"report.md", "savings.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_wrong_row_ends_with_status_1_and_shows_no_speed_up(tmp_path):
    wrong = replace(STATIC, engine="dyncp gated", site="hidden", p50_us_per_frame=15.0, correct=False, saving_time=None)
    write_results(Results({}, [STATIC, wrong]), tmp_path / "results")
    result = dyncp("bench", "--report", tmp_path / "results.json")
    assert result.exit_code == 1
    assert "1 of 2 rows have wrong outputs" in result.output
    assert "WRONG" in result.output
    assert "4.00" not in result.output


def test_a_file_of_another_kind_is_one_line(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    result = dyncp("bench", "--report", tmp_path / "x.json")
    assert result.exit_code == 1
    assert "dyncp bench: " in result.output
    assert "results must be written by" in result.output


@pytest.mark.skipif(not extension_loaded(), reason="needs the native extension")
def test_measuring_one_suite_writes_its_rows(tmp_path, monkeypatch):
    config = ConvFSENetConfig(channels=16, hidden=24, stacks=1)
    monkeypatch.setattr(suites, "Plan", functools.partial(suites.Plan, config=config, stream_frames=60))
    result = dyncp("bench", "--suite", "full_path", "--seconds", "0.1", "--recorded", tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = read_results(tmp_path / "out" / "results.json").rows
    assert {row.suite for row in rows} == {"full_path"}
    assert {row.macs_per_frame for row in rows if row.site == "none"} == {macs_per_frame(config)}
