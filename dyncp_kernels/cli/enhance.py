"""``dyncp enhance``: enhance files and folders of audio."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["enhance"]


def enhance(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN...", help="Audio files, and folders to search for them.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write to; for one input file also a file name.")],
    model: Annotated[str | None, typer.Option(help="Shipped name or path of a model; default the pruned one.")] = None,
    budget: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Share of channels to keep.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Go frame by frame, as a live signal would.")] = False,
) -> None:
    """Enhance speech: any rate, mono or stereo; outputs keep rate, channels and length.

    Files that cannot be used get a line each, the others go on, and the exit status is 1.
    """
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from dyncp_kernels.audio.enhance_file import enhance_file
    from dyncp_kernels.audio.files import SUFFIXES, AudioFileError, find_audio, is_audio_suffix
    from dyncp_kernels.nn.calibrate import shift_for_budget
    from dyncp_kernels.nn.default_models import pruned_models
    from dyncp_kernels.nn.files import load

    def fail(message: object) -> None:
        typer.echo(f"dyncp enhance: {message}", err=True)

    try:
        network = load(model or pruned_models()[0]).fold()
        shift_for_budget(network.calibration, budget)
        if stream:
            network.initial_state()
            torch.set_num_threads(1)  # one frame is too little work to share: waiting for each other costs more
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        fail(error)
        raise typer.Exit(1) from None

    found = find_audio(inputs)
    if any(folder.is_dir() and folder.resolve() in out.resolve().parents for folder in inputs):
        # The output folder lies in an input folder: what an earlier run wrote is no input of this one.
        found = [(source, name) for source, name in found if out.resolve() not in source.resolve().parents]
    if not found:
        fail(f"inputs must hold audio files ({', '.join(SUFFIXES)}) (got none)")
        raise typer.Exit(1)
    names_a_file = len(inputs) == 1 and not inputs[0].is_dir() and not out.is_dir()
    to_file = names_a_file and out.suffix.lower() in SUFFIXES
    if names_a_file and not to_file and is_audio_suffix(out.suffix):
        fail(f"--out must be a folder or end in one of {', '.join(SUFFIXES)} (got {out})")
        raise typer.Exit(1)
    sources = {source.resolve() for source, _ in found}
    written: set[Path] = set()
    failures = 0
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=len(found))
        for index, (source, name) in enumerate(found):
            bar.update(task, description=name.name, completed=index)
            target = out if to_file else out / name
            if target.suffix.lower() not in SUFFIXES:
                target = target.with_suffix(".wav")
            try:
                if target in written:
                    raise AudioFileError(source, "outputs must have different names", target)
                if target.resolve() in sources:
                    raise AudioFileError(source, "output must not overwrite an input", target)
                target.parent.mkdir(parents=True, exist_ok=True)
                result = enhance_file(
                    network,
                    source,
                    target,
                    budget=budget,
                    stream=stream,
                    on_progress=partial(_advance, bar, task, index),
                )
            except (OSError, ValueError) as error:
                failures += 1
                bar.console.print(f"dyncp enhance: {error}", markup=False, highlight=False, soft_wrap=True)
                continue
            written.add(target)
            gates = (
                "no gates"
                if result.usage is None
                else f"{result.usage:.1%} of the gated channels used, {result.macs_saved:.1%} of the MACs saved"
            )
            console.print(
                f"{target}: {result.seconds:.2f} s, real-time factor {result.real_time_factor:.4f}, {gates}",
                markup=False,
            )
            for note in result.notes:
                console.print(f"  {note}", markup=False)
    if failures:
        fail(f"{failures} of {len(found)} files failed")
        raise typer.Exit(1)


def _advance(bar: Any, task: Any, done: int, share: float) -> None:
    bar.update(task, completed=done + share)
