"""``dyncp demo``: hear, see and time dynamic channel pruning on one clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dyncp_kernels.evaluation.demonstration import Demonstration

__all__ = ["demo"]


def demo(
    audio: Annotated[Path | None, typer.Argument(help="Noisy recording; default the clip that comes along.")] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for audio and figure.")] = Path("demo-out"),
    clean: Annotated[Path | None, typer.Option(help="Clean reference of AUDIO, for PESQ.")] = None,
    static: Annotated[str | None, typer.Option(help="Network without gates: a shipped name or a path.")] = None,
    pruned: Annotated[
        list[str] | None, typer.Option(help="Network with gates: a shipped name or a path; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure, streaming and offline each.")] = 4.0,
) -> None:
    """Enhance a clip with the static and the pruned networks; write audio and a figure; compare MACs and time.

    Beside the shipped networks goes what they have to beat, a narrower one without gates. AUDIO may have any rate and
    any number of channels, which are mixed to one.
    """
    from rich.console import Console

    from dyncp_kernels import demo_clip
    from dyncp_kernels.audio.files import read_audio
    from dyncp_kernels.evaluation.demonstration import demonstrate
    from dyncp_kernels.nn.default_models import narrower_models, pruned_models, static_model
    from dyncp_kernels.nn.files import load

    console = Console(highlight=False)
    try:
        names = [static or static_model(), *(pruned or [*pruned_models(), *narrower_models()])]
        networks = dict(zip(_short_names(names), map(load, names)))
        rate = next(iter(networks.values())).config.sample_rate
        if audio is None:
            audio, clean = demo_clip.NOISY, clean or demo_clip.CLEAN
        with console.status("reading") as status:
            result = demonstrate(
                networks,
                read_audio(audio, rate),
                out,
                clean=None if clean is None else read_audio(clean, rate),
                timing_seconds=seconds,
                on_stage=status.update,
            )
    except (OSError, ValueError, RuntimeError) as error:
        typer.echo(f"dyncp demo: {error}", err=True)
        raise typer.Exit(1) from None
    _print(console, result, audio)


def _short_names(names: list[str]) -> list[str]:
    """The last parts of paths, as many as tell the networks apart.

    Raises:
        ValueError: a network was given twice.
    """
    parts = [Path(name).parts for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        short = ["-".join(part[-count:]) for part in parts]
        if len(set(short)) == len(names):
            return short
    raise ValueError(f"the networks must differ (got {names})")


def _print(console: Any, result: Demonstration, audio: Path) -> None:
    from rich.table import Table

    from dyncp_kernels._extension import instruction_set
    from dyncp_kernels.cli.environment import implementation

    (_, static), *others = result.models.items()
    threads = static.time.threads
    compiled = implementation("CPU") == "compiled"
    kernels = f"compiled kernels, {instruction_set()}" if compiled else "PyTorch reference: nothing is skipped"
    table = Table(
        "",
        "channels\nkept",
        "MACs /\nframe",
        "streaming\nµs / frame",
        "offline\nµs / frame",
        "wideband\nPESQ",
        title=f"{audio.name}: {result.seconds:.1f} s, frames of 16 ms; {kernels}",
        caption="Median times from features to mask, gate networks and index lists included, networks taking turns: "
        f"streaming on 1 thread, offline on {threads}. Outputs checked in the same run.",
    )
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"

    def score(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table.add_row("noisy", "", "", "", "", score(result.noisy_pesq))
    for name, row in result.models.items():
        table.add_row(
            name,
            f"{row.usage:.1%}",
            f"{row.macs_per_frame:,.0f}",
            f"{row.time.streaming:,.1f}",
            f"{row.time.offline:,.1f}",
            score(row.pesq),
        )
    table.add_section()
    for name, row in others:
        savings = (
            row.macs_per_frame / static.macs_per_frame,
            row.time.streaming / static.time.streaming,
            row.time.offline / static.time.offline,
        )
        table.add_row(f"saving of {name}", "", *(f"{1 - ratio:.1%}" for ratio in savings), "")
    console.print(table)
    for path in result.files:
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
