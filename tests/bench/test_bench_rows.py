import csv
import json
from dataclasses import replace

import pytest

from dyncp_kernels.bench.machine import machine_header, read_microseconds
from dyncp_kernels.bench.row import Results, Row, read_results, with_savings, write_results

STATIC = Row(
    *("streaming", "dyncp static", "none", 1.0, "none", "float32"),
    *(1, 1, 1, 600_000.0, 60.0, 70.0, None, None, None, True, 1e-7),
)
GATED = replace(STATIC, engine="dyncp gated", site="hidden", density=0.25, macs_per_frame=240e3, p50_us_per_frame=30.0)


def test_the_columns_are_the_agreed_ones_in_that_order(tmp_path):
    write_results(Results({}, [STATIC]), tmp_path / "r")
    columns = (tmp_path / "r.csv").read_text().splitlines()[0].split(",")
    assert columns == [
        *("suite", "engine", "site", "density", "gates", "dtype", "threads", "batch", "frames", "macs_per_frame"),
        *("p50_us_per_frame", "p99_us_per_frame", "saving_macs", "saving_time", "realised", "correct", "max_error"),
        "calls",
    ]


def test_results_come_back_from_json_as_they_went_and_the_csv_holds_the_same_numbers(tmp_path):
    results = Results(machine_header(), [with_savings(GATED, STATIC), replace(STATIC, max_error=None)], ["a note"])
    write_results(results, tmp_path / "folder" / "r.json")
    assert read_results(tmp_path / "folder" / "r.json") == results
    rows = list(csv.DictReader((tmp_path / "folder" / "r.csv").open()))
    assert float(rows[0]["saving_macs"]) == pytest.approx(0.6)
    assert float(rows[0]["realised"]) == pytest.approx(0.5 / 0.6)
    assert rows[1]["max_error"] == ""


@pytest.mark.parametrize("wrong", ["row", "baseline"])
def test_a_wrong_output_on_either_side_leaves_no_saving_of_time(wrong):
    row = replace(GATED, correct=wrong != "row")
    found = with_savings(row, replace(STATIC, correct=wrong != "baseline"))
    assert found.saving_macs == pytest.approx(0.6)
    assert found.saving_time is None
    assert found.realised is None


def test_nothing_is_realised_where_no_mac_is_saved():
    found = with_savings(replace(GATED, macs_per_frame=620e3, p50_us_per_frame=66.0), STATIC)
    assert found.saving_time == pytest.approx(-0.1)
    assert found.realised is None


@pytest.mark.parametrize("change", [{"format": 99}, {"rows": [{"engine": "x"}]}, {"rows": None}])
def test_other_files_are_refused_by_name(tmp_path, change):
    write_results(Results({}, [STATIC]), tmp_path / "r")
    document = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**document, **change}))
    with pytest.raises(ValueError, match=r"other\.json: results must be written by"):
        read_results(tmp_path / "other.json")


def test_the_machine_header_names_processor_versions_and_date():
    header = machine_header()
    assert header["processor"]
    assert header["cores"] >= 1
    assert {"date", "caches", "governor", "instruction_set", "compiler", "torch", "onnxruntime"} <= header.keys()
    json.dumps(header)


def test_reading_more_takes_longer():
    assert 0 < read_microseconds(4096) < read_microseconds(1 << 25, repeats=5)
