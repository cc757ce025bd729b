from dataclasses import replace

import pytest

from dyncp_kernels.bench.report import goals, markdown, plot, print_tables
from dyncp_kernels.bench.row import Results, Row, read_results, with_savings, write_results

pytest.importorskip("rich")


def row(suite="streaming", engine="dyncp static", p50=60.0, macs=600e3, **changes):
    values = {"site": "none", "density": 1.0, "gates": "none", "dtype": "float32", "frames": 1, **changes}
    return Row(
        *(suite, engine, values["site"], values["density"], values["gates"], values["dtype"], 1, 1),
        *(values["frames"], macs, p50, 2 * p50, None, None, None, values.get("correct", True), 1e-7),
    )


def example(correct=True):
    static = row()
    gated = {"engine": "dyncp gated", "site": "hidden", "density": 0.25, "macs": 240e3}
    rows = [
        static,
        row(engine="ONNX Runtime", p50=480.0),
        row(engine="OpenVINO", p50=540.0),
        row(engine="masked dense, OpenVINO", p50=1.0, site="hidden", density=0.25, gates="random"),
        with_savings(row(**gated, p50=33.0, gates="random", correct=correct), static),
        with_savings(row(**gated, p50=24.0, gates="recorded"), static),
        with_savings(row(engine="narrower 80, time of hidden 25% recorded", p50=24.5, macs=250e3), static),
        row("full_path", p50=60.0),
        row("full_path", "dyncp static, samples", p50=72.0),
        row("full_path", "dyncp static, enhancer", p50=95.0),
        row("precision", p50=60.0),
        row("precision", p50=40.0, dtype="float16"),
        row("precision", p50=30.0, dtype="int8"),
        row("precision", p50=20.0, dtype="bfloat16"),
    ]
    return Results({"processor": "some processor", "governor": None}, rows, ["a note"])


@pytest.fixture
def stored(tmp_path):
    write_results(example(), tmp_path / "r")
    return read_results(tmp_path / "r.json")


def test_goals_are_computed_from_the_rows(stored):
    reached = {goal.what: (goal.reached, goal.verdict) for goal in goals(stored)}
    assert reached["streaming, static: fastest other engine / ours"] == (8.0, "must")
    random = reached["streaming, hidden site 25 %, random gates: realised"]
    assert random == (pytest.approx(0.45 / 0.6), "missed")
    assert reached["streaming, hidden site 25 %, recorded gates: realised"] == (pytest.approx(1.0), "aim")
    assert reached["streaming, any site and density: slower than our static by"][1] == "aim"
    assert reached["samples in to samples out: us per hop beside the network"] == (12.0, "aim")
    assert reached["the same through StreamingEnhancer"] == (35.0, "must")
    assert reached["streaming, static: float32 / float16 or int8 weights, the faster"] == (2.0, "must")
    assert reached["offline 1 x 500, static: fastest other engine / ours"] == (None, "not measured")


def test_a_wrong_row_reaches_no_goal_and_shows_no_speed_up():
    results = example(correct=False)
    reached = {goal.what: goal.verdict for goal in goals(results)}
    assert reached["streaming, hidden site 25 %, random gates: realised"] == "not measured"
    (line,) = [line for line in markdown(results).splitlines() if "dyncp gated | hidden | 25% | random" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[8:12] == ["60.0%", "", "", ""]
    assert cells[12].startswith("WRONG")


def test_no_speed_up_is_shown_over_a_wrong_static_network():
    results = example()
    rows = [replace(r, correct=r.engine != "dyncp static") for r in results.rows]
    page = markdown(Results({}, rows))
    (line,) = [line for line in page.splitlines() if line.startswith("| ONNX Runtime ")]
    assert line.split("|")[12].strip() == ""


def test_the_page_has_machine_goals_every_row_and_the_notes(stored):
    page = markdown(stored, "savings.png")
    for text in ("- processor: some processor", "- governor: unknown", "![", "(savings.png)", "- a note"):
        assert text in page
    assert sum(line.startswith("| dyncp static") for line in page.splitlines()) == 8
    (line,) = [line for line in page.splitlines() if "dyncp gated | hidden | 25% | recorded" in line]
    assert "| 240.0 | 24.0 | 48.0 | 60.0% | 60.0% | 1.00 | 2.50 |" in line


def test_the_figure_is_a_png(stored, tmp_path):
    pytest.importorskip("matplotlib")
    path = plot(stored, tmp_path / "new" / "savings.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert plot(Results({}, []), tmp_path / "empty.png").exists()


@pytest.mark.parametrize("width", [120, 220])
def test_the_terminal_shows_every_engine_and_marks_wrong_ones_at_any_width(width):
    from rich.console import Console

    console = Console(width=width, record=True)
    print_tables(example(correct=False), console)
    text = console.export_text()
    assert text.count("WRONG") == 1
    assert text.count("dyncp static") == 8
    assert ("p99 us" in text.splitlines()[2]) == (width == 220)
