"""``dyncp bench``: time this package beside other engines."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["bench"]

_RECORDED = Path("benchmarks/recorded")
_RESULTS = "results.json"
_FILE_WIDTH = 160


def bench(
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="streaming, precision, full_path, chunks, streams, cold, native, native_cold or offline; may be "
            "repeated; default all."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for JSON, CSV, report and figure.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Under two minutes: fewer engines, densities and clips.")
    ] = False,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Measuring time per suite; 20, quick 6.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads for every engine.")] = 1,
    recorded: Annotated[Path, typer.Option(help="Folder of recorded masks, SITE_PERCENT.npz.")] = _RECORDED,
    instructions: Annotated[
        bool, typer.Option("--instructions", help="Count instructions per frame under valgrind instead.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Measure nothing: show the results in this JSON again.")] = None,
) -> None:
    """Time this package beside PyTorch, ONNX Runtime and OpenVINO, statically and with gates of every density.

    Engines take turns in one process; no speed-up is printed for an output that is wrong. The exit status is 1 when
    one is.
    """
    from rich.console import Console

    from dyncp_kernels._optional import MissingExtraError

    # A file or pipe has no width of its own.
    console = Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH)
    try:
        if instructions:
            _count_instructions(console, out, recorded)
            return
        from dyncp_kernels.bench.report import print_tables
        from dyncp_kernels.bench.row import read_results
        from dyncp_kernels.bench.suites import SUITES, Plan, run_suites

        if report is not None:
            results = read_results(report)
            out = out or report.parent
        else:
            chosen = suite or list(SUITES)
            plan = Plan(seconds=seconds or (6.0 if quick else 20.0), threads=threads, quick=quick, recorded=recorded)
            with Console(stderr=True).status("starting") as status:
                results = run_suites(chosen, plan, status.update)
        print_tables(results, console)
        if out is not None:
            for path in _write(results, out, measured=report is None):
                console.print(f"wrote {path}", markup=False, soft_wrap=True)
    except MissingExtraError:
        raise
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        typer.echo(f"dyncp bench: {error}", err=True)
        raise typer.Exit(1) from None
    if wrong := sum(not row.correct for row in results.rows):
        typer.echo(f"dyncp bench: {wrong} of {len(results.rows)} rows have wrong outputs", err=True)
        raise typer.Exit(1)


def _write(results: Any, out: Path, measured: bool) -> list[Path]:
    from dyncp_kernels.bench.report import markdown, plot
    from dyncp_kernels.bench.row import write_results

    paths = write_results(results, out / _RESULTS) if measured else []
    figure = plot(results, out / "savings.png")
    page = out / "report.md"
    page.write_text(markdown(results, figure.name), encoding="utf-8")
    return [*paths, page, figure]


def _count_instructions(console: Any, out: Path | None, recorded: Path) -> None:
    from dyncp_kernels.bench.instructions import count_instructions, instruction_table, write_instructions

    with console.status("counting instructions under valgrind"):
        rows = count_instructions(recorded)
    console.print(instruction_table(rows))
    if out is not None:
        for path in write_instructions(rows, out / "instructions.json"):
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
