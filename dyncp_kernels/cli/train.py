"""``dyncp train``: train the run that a TOML file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    config: Annotated[Path, typer.Argument(help="TOML file, or the name of a recipe that comes with the package.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; a run stopped there is resumed.")],
    voicebank: Annotated[Path | None, typer.Option(help="VoiceBank+DEMAND in its published layout.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Clean files of training pairs.")] = None,
    noisy: Annotated[Path | None, typer.Option(help="Noisy files with the same names.")] = None,
    speech: Annotated[Path | None, typer.Option(help="Speech to mix with noise on the fly.")] = None,
    noise: Annotated[Path | None, typer.Option(help="Noise to mix with speech on the fly.")] = None,
    valid_clean: Annotated[Path | None, typer.Option(help="Clean files of validation pairs.")] = None,
    valid_noisy: Annotated[Path | None, typer.Option(help="Noisy files of validation pairs.")] = None,
    warm_start: Annotated[str | None, typer.Option(help="Model to start from: a name or a path.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Train a Conv-FSENet; options replace what CONFIG says."""
    from dyncp_kernels.training.config import load_train_config
    from dyncp_kernels.training.loop import train as run

    paths = {
        "voicebank": voicebank,
        "clean": clean,
        "noisy": noisy,
        "speech": speech,
        "noise": noise,
        "valid_clean": valid_clean,
        "valid_noisy": valid_noisy,
    }
    data = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    options = {"warm_start": warm_start, "steps": steps, "seed": seed}
    top = {name: value for name, value in options.items() if value is not None}
    try:
        best = run(load_train_config(config, {**top, "data": data}), out)
    except (OSError, ValueError) as error:
        typer.echo(f"dyncp train: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"best model: {best}")
