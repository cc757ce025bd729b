"""The command line: ``dyncp COMMAND``, one module per command."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from dyncp_kernels._optional import MissingExtraError, require

__all__ = ["build_app", "main"]

# Command, and the function of the module of that name. Modules import typer and nothing heavier at their top, so that
# the help appears at once.
_COMMANDS = {
    "enhance": "enhance",
    "demo": "demo",
    "info": "info",
    "train": "train",
    "eval": "evaluate",
    "export": "export",
    "bench": "bench",
}


def build_app() -> Any:
    """Return the typer application with every command.

    Raises:
        MissingExtraError: typer is not installed.
    """
    typer = require("typer", extra="cli")
    app = typer.Typer(
        name="dyncp",
        help="Speech enhancement with dynamic channel pruning: channels that a gate drops are not computed.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    for command, function in _COMMANDS.items():
        module = f"{__name__}.{command}"
        if importlib.util.find_spec(module) is not None:
            app.command(command)(getattr(importlib.import_module(module), function))
    return app


def main() -> None:
    """Run ``dyncp``; a missing optional dependency ends in one line that says how to install it."""
    try:
        build_app()()
    except MissingExtraError as error:
        sys.exit(f"dyncp: {error}")
