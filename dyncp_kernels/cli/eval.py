"""``dyncp eval``: score a model on pairs of clean and noisy files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["evaluate"]

_ROWS = (
    ("wideband PESQ", "pesq", "{:.3f}"),
    ("STOI", "stoi", "{:.4f}"),
    ("SI-SDR (dB)", "si_sdr", "{:.2f}"),
)


def evaluate(
    model: Annotated[str, typer.Argument(help="Shipped name or path of a model.")],
    clean: Annotated[Path, typer.Option(help="Folder of clean files.")],
    noisy: Annotated[Path, typer.Option(help="Folder of noisy files with the same names.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV with one row a file.")] = None,
    summary: Annotated[Path | None, typer.Option(help="JSON with means and confidence intervals.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Save the gate masks here (.npz), for benchmarks.")] = None,
    budget: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Share of channels to keep.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Score the streaming engine with float32, int24, float16, bfloat16 or int8 weights."),
    ] = None,
) -> None:
    """Score a model: PESQ, STOI, SI-SDR with 95 % intervals, usage, MACs, speed, and how dynamic its gates are."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from dyncp_kernels._atomic import check_folder
    from dyncp_kernels.evaluation.mask_files import save_masks
    from dyncp_kernels.evaluation.score import score
    from dyncp_kernels.nn.files import load
    from dyncp_kernels.nn.macs import saved_share
    from dyncp_kernels.training.data import find_pairs

    console = Console()
    try:
        network = load(model).fold()
        # Before what takes minutes.
        if masks is not None and network.config.site == "none":
            raise ValueError(f"--masks needs a gated model (got {model} without gates)")
        for path in (out, summary, masks):
            if path is not None:
                check_folder(path)
        pairs = find_pairs(clean, noisy)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("score", total=len(pairs))
            report = score(network, pairs, budget, precision, on_file=lambda _: bar.advance(task))
    except (FileNotFoundError, ValueError) as error:
        typer.echo(f"dyncp eval: {error}", err=True)
        raise typer.Exit(1) from None
    if out is not None:
        report.write_csv(out)
    if masks is not None:
        save_masks(masks, report.masks)
    if summary is not None:
        summary.write_text(json.dumps(report.summary(), indent=1) + "\n", encoding="utf-8")

    means = report.means()
    table = Table("metric", "noisy", "enhanced", "gain", "95 % interval of the gain")
    for label, name, form in _ROWS:
        gain = means[f"{name}_gain"]
        values = (means[f"noisy_{name}"].mean, means[name].mean, gain.mean)
        table.add_row(label, *map(form.format, values), f"{form.format(gain.low)} to {form.format(gain.high)}")
    console.print(table)
    macs = means["macs_per_frame"].mean
    console.print(
        f"{len(pairs)} files; usage {means['usage'].mean:.3f}; {macs:,.0f} MACs a frame "
        f"({100 * saved_share(network.config, macs):.1f} % fewer than without gates); "
        f"real-time factor {means['real_time_factor'].mean:.4f}"
    )
    if report.overall is not None:
        gates = Table("block", "usage", "flips", "always on", "always off", "entropy", "union 4", "union 8", "union 16")
        rows = [(f"B{i}", block) for i, block in enumerate(report.dynamism)]
        for label, block in [*rows, ("all", report.overall)]:
            gates.add_row(label, *(f"{value:.3f}" for value in block.row().values()))
        console.print(gates)
