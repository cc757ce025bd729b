"""``dyncp export``: write a model for programs without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    model: Annotated[str, typer.Argument(help="Shipped name or path of a model.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write, .safetensors by convention.")],
) -> None:
    """Fold a model into the one file that dyncp_model_load of the C interface (dyncp.h) reads."""
    from dyncp_kernels.engine import save_folded
    from dyncp_kernels.nn.files import load

    try:
        path = save_folded(load(model), out)
    except (OSError, ValueError) as error:
        typer.echo(f"dyncp export: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{path}: {path.stat().st_size:,} bytes")
