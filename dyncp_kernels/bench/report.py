"""Results as a table for the terminal, a Markdown page and a figure, all from the rows alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dyncp_kernels._optional import require
from dyncp_kernels.bench.row import Results, Row, path_of

__all__ = ["Goal", "goals", "markdown", "plot", "print_tables"]

_STATIC = "dyncp static"
_GATED = "dyncp gated"
_COLORS = {"output": "tab:blue", "hidden": "tab:orange"}
_WRONG = "WRONG"


@dataclass(frozen=True)
class Goal:
    """A figure that the kernels are meant to reach.

    Attributes:
        what: in words.
        reached: from the results; None where rows are missing or wrong.
        must: least (or most) acceptable.
        aim: wished.
        at_most: whether smaller is better.
    """

    what: str
    reached: float | None
    must: float
    aim: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        """``aim``, ``must``, ``missed``, or ``not measured``."""
        if self.reached is None:
            return "not measured"
        sign = -1 if self.at_most else 1
        if sign * self.reached >= sign * self.aim:
            return "aim"
        return "must" if sign * self.reached >= sign * self.must else "missed"


def goals(results: Results) -> list[Goal]:
    """The goals for float32 and one thread, with what these results reached."""
    rows = [row for row in results.rows if row.threads == 1 and row.correct]
    return [
        Goal("streaming, static: fastest other engine / ours", _rival(rows, "streaming", _static), 8, 12),
        Goal("streaming, output site 25 %, random gates: realised", _realised(rows, "output", "random"), 0.9, 1.0),
        Goal("streaming, output site 25 %, recorded gates: realised", _realised(rows, "output", "recorded"), 0.9, 1.0),
        Goal("streaming, hidden site 25 %, random gates: realised", _realised(rows, "hidden", "random"), 0.8, 0.95),
        Goal("streaming, hidden site 25 %, recorded gates: realised", _realised(rows, "hidden", "recorded"), 0.85, 1.0),
        Goal("streaming, any site and density: slower than our static by", _slowdown(rows, "streaming"), 0.03, 0, True),
        Goal("offline, any site and density: slower than our static by", _slowdown(rows, "offline"), 0.03, 0, True),
        Goal("offline 1 x 500, static: fastest other engine / ours", _rival(rows, "offline", _static), 1.0, 1.5),
        Goal(
            "offline 1 x 500, hidden 25 %, recorded gates: fastest other dense engine / ours",
            _rival(rows, "offline", lambda row: _gated(row, "hidden", "recorded")),
            2.0,
            3.0,
        ),
        Goal(
            "samples in to samples out: us per hop beside the network", _beside_network(rows, "samples"), 60, 25, True
        ),
        Goal("the same through StreamingEnhancer", _beside_network(rows, "enhancer"), 60, 25, True),
        Goal("streaming, static: float32 / float16 or int8 weights, the faster", _narrow_weights(rows), 1.5, 2.5),
    ]


Choice = Callable[[Row], bool]


def _static(row: Row) -> bool:
    return row.engine == _STATIC


def _gated(row: Row, site: str, gates: str, density: float = 0.25) -> bool:
    return row.engine == _GATED and (row.site, row.gates, row.density) == (site, gates, density)


def _is_rival(row: Row) -> bool:
    """A dense network of full width in another engine."""
    return row.site == "none" and not row.engine.startswith(("dyncp", "narrower"))


def _time(rows: Sequence[Row], suite: str, choice: Choice) -> float | None:
    times = [row.p50_us_per_frame for row in rows if row.suite == suite and row.batch == 1 and choice(row)]
    return min(times, default=None)


def _narrow_weights(rows: Sequence[Row]) -> float | None:
    full = _time(rows, "precision", lambda row: _static(row) and row.dtype == "float32")
    return _ratio(full, _time(rows, "precision", lambda row: _static(row) and row.dtype in ("float16", "int8")))


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _rival(rows: Sequence[Row], suite: str, ours: Choice) -> float | None:
    return _ratio(_time(rows, suite, _is_rival), _time(rows, suite, ours))


def _realised(rows: Sequence[Row], site: str, gates: str) -> float | None:
    return next((row.realised for row in rows if row.suite == "streaming" and _gated(row, site, gates)), None)


def _slowdown(rows: Sequence[Row], suite: str) -> float | None:
    savings = [row.saving_time for row in rows if row.suite == suite and row.engine == _GATED]
    return max((-saving for saving in savings if saving is not None), default=None)


def _beside_network(rows: Sequence[Row], path: str) -> float | None:
    alone = _time(rows, "full_path", _static)
    whole = _time(rows, "full_path", lambda row: row.engine == f"{_STATIC}, {path}")
    return None if alone is None or whole is None else whole - alone


_HEADINGS: tuple[str, ...] = (
    *("engine", "site", "kept", "gates", "dtype", "kMAC", "p50 us", "p99 us"),
    *("MACs saved", "time saved", "realised", "speed-up", "max error"),
)
_TEXT_COLUMNS = 5


def _groups(results: Results) -> list[tuple[str, list[Row]]]:
    """Rows by suite and shape, with a title."""
    groups: dict[str, list[Row]] = {}
    for row in results.rows:
        threads = f"{row.threads} thread{'s' * (row.threads != 1)}"
        shape = f", {row.batch} x {row.frames} frames" if row.suite == "offline" else ""
        shape = f", {row.frames} frames a call" if row.suite == "chunks" else shape
        shape = f", {row.batch} a call" if row.suite == "streams" else shape
        groups.setdefault(f"{row.suite}{shape}, {threads}", []).append(row)
    return list(groups.items())


def _cells(row: Row, baselines: Sequence[Row]) -> tuple[str, ...]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    # The quotient is shown for the same reason and under the same condition as the saving.
    base = next((b for b in baselines if (b.dtype, path_of(b)) == (row.dtype, path_of(row))), None)
    speed_up = ""
    if base is not None and base is not row and base.correct and row.correct:
        speed_up = f"{base.p50_us_per_frame / row.p50_us_per_frame:.2f}"
    error = "not finite" if row.max_error is None else f"{row.max_error:.1e}"
    is_static = row.saving_macs == 0.0
    return (
        row.engine,
        row.site,
        f"{row.density:.0%}",
        row.gates,
        row.dtype,
        f"{row.macs_per_frame / 1e3:,.1f}",
        f"{row.p50_us_per_frame:,.1f}",
        f"{row.p99_us_per_frame:,.1f}",
        "" if is_static else share(row.saving_macs),
        "" if is_static else share(row.saving_time),
        "" if row.realised is None else f"{row.realised:.2f}",
        speed_up,
        error if row.correct else f"{_WRONG} {error}",
    )


def _table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    baselines = [row for row in rows if row.engine.startswith(_STATIC)]
    return [_cells(row, baselines) for row in rows]


def _goal_cells(goal: Goal) -> tuple[str, ...]:
    reached = "" if goal.reached is None else f"{goal.reached:.2f}"
    return goal.what, reached, f"{goal.must:g}", f"{goal.aim:g}", goal.verdict


_GOAL_HEADINGS = ("what", "reached", "must", "aim", "verdict")


_WIDE_CONSOLE = 160


def print_tables(results: Results, console: Any) -> None:
    """Print everything to a rich console, with fewer columns where it is narrow."""
    table_type = require("rich.table", "cli").Table
    is_wide = console.width >= _WIDE_CONSOLE
    for title, rows in _groups(results):
        left_out = {"p99 us", "max error"} | ({"dtype"} if len({row.dtype for row in rows}) == 1 else set())
        columns = [i for i, name in enumerate(_HEADINGS) if is_wide or name not in left_out]
        table = table_type(title=title)
        for column in columns:
            table.add_column(_HEADINGS[column], justify="left" if column < _TEXT_COLUMNS else "right")
        for cells, row in zip(_table(rows), rows):
            shown = [cells[column] for column in columns]
            if not row.correct:
                shown[-1] = cells[-1]
            table.add_row(*shown, style=None if row.correct else "red")
        console.print(table)
    table = table_type(*_GOAL_HEADINGS, title="goals: float32, one thread")
    for goal in goals(results):
        table.add_row(*_goal_cells(goal), style="red" if goal.verdict == "missed" else None)
    console.print(table)
    for note in results.notes:
        console.print(f"note: {note}", markup=False)


def markdown(results: Results, figure: str | None = None) -> str:
    """The report as one Markdown page.

    Args:
        results: what was measured.
        figure: file name of the figure, beside the page.
    """
    lines = ["# Benchmark results", ""]
    lines += [f"- {name}: {_header_text(value)}" for name, value in results.machine.items()]
    lines += [
        "",
        "Times are microseconds per 16 ms frame, gate networks and index lists included; engines took turns in one",
        "process, and every output was checked against a float64 reference in the same run. `MACs saved`, `time saved`",
        "and `speed-up` are against `dyncp static` in the same table and dtype, called in the same way; `realised` is",
        "time saved / MACs saved. How everything is measured: `benchmarks/README.md`.",
        "",
    ]
    if figure:
        lines += [f"![Measured against theoretical saving]({figure})", ""]
    lines += ["## Goals", "", *_markdown_table(_GOAL_HEADINGS, [_goal_cells(goal) for goal in goals(results)], 1), ""]
    for title, rows in _groups(results):
        lines += [f"## {title[0].upper()}{title[1:]}", "", *_markdown_table(_HEADINGS, _table(rows), _TEXT_COLUMNS), ""]
    if results.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in results.notes), ""]
    return "\n".join(lines)


def _header_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "unknown"
    return "unknown" if value is None else str(value)


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Lines of a table whose first ``left`` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows)]


def plot(results: Results, path: str | os.PathLike[str]) -> Path:
    """Draw measured saving over MAC saving, a panel per suite and shape with gated rows, to a PNG.

    The diagonal is a saving fully realised. Dense networks that are narrower stand beside the gated ones: at equal
    measured time as triangles, at equal MACs as squares.
    """
    figure_type = require("matplotlib.figure", "cli").Figure
    panels = []
    for title, rows in _groups(results):
        if title.startswith(("streaming", "offline")) and any(row.engine == _GATED for row in rows):
            panels.append((title, [row for row in rows if row.saving_time is not None]))
    figure = figure_type(figsize=(5.6 * max(len(panels), 1), 5.2), layout="constrained")
    for number, (title, rows) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        axes.plot((0, 100), (0, 100), color="0.6", linestyle="--", linewidth=1, label="ideal")
        for site, color in _COLORS.items():
            for gates, style in (("random", "o-"), ("recorded", "D:")):
                points = sorted(
                    (100 * (row.saving_macs or 0), 100 * (row.saving_time or 0))
                    for row in rows
                    if row.engine == _GATED and (row.site, row.gates) == (site, gates)
                )
                if points:
                    axes.plot(*zip(*points), style, color=color, markersize=5, label=f"{site} gates, {gates}")
        for what, marker in (("time", "^"), ("MACs", "s")):
            points = [
                (100 * (row.saving_macs or 0), 100 * (row.saving_time or 0))
                for row in rows
                if row.engine.startswith("narrower") and f", {what} of " in row.engine
            ]
            if points:
                label = f"narrower dense, equal {what}"
                axes.plot(*zip(*points), marker, color="black", markerfacecolor="none", label=label)
        axes.axhline(0, color="0.8", linewidth=0.8)
        axes.set(title=title, xlabel="MACs saved (%)", ylabel="time saved (%)")
        axes.legend(fontsize="small", loc="upper left")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=130)
    return path
