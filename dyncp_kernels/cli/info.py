"""``dyncp info``: what is installed and in use."""

from __future__ import annotations

__all__ = ["info"]


def info() -> None:
    """Print versions, the instruction set and back-ends in use, optional packages, and the shipped models."""
    from rich.console import Console
    from rich.table import Table

    from dyncp_kernels.cli import environment
    from dyncp_kernels.nn.config import ConvFSENetConfig
    from dyncp_kernels.nn.files import model_info, shipped_models
    from dyncp_kernels.nn.macs import macs_per_frame

    console = Console(highlight=False)
    for title, rows in (
        ("versions", environment.versions()),
        ("processor", environment.processor()),
        ("back-ends of torch.ops.dyncp", environment.back_ends()),
        ("optional packages", environment.extras()),
    ):
        table = Table(title=title, title_justify="left", show_header=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)

    models = Table("model", "gates", "MACs / frame, all channels", "note", title="shipped models", title_justify="left")
    for name in shipped_models():
        description = model_info(name)
        config = ConvFSENetConfig.from_dict(description["config"])
        note = str(description.get("info", {}).get("note", ""))
        models.add_row(name, config.site, f"{macs_per_frame(config):,}", note)
    console.print(models)
