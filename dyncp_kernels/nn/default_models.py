"""Which of the shipped models the commands use by default, chosen by geometry rather than by name."""

from __future__ import annotations

from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.files import model_info, shipped_models

__all__ = ["pruned_models", "static_model"]


def static_model() -> str:
    """Name of the shipped network without gates, of the default width.

    Raises:
        FileNotFoundError: there is none.
    """
    return _shipped("none")[0]


def pruned_models() -> list[str]:
    """Names of the shipped networks with dynamic channel pruning: at the output site, as in the paper, first.

    Raises:
        FileNotFoundError: there is none.
    """
    return _shipped("output", "hidden", "both")


def _shipped(*sites: str) -> list[str]:
    default = ConvFSENetConfig()
    wanted = (default.channels, default.hidden, default.causal)
    configs = {name: ConvFSENetConfig.from_dict(model_info(name)["config"]) for name in shipped_models()}
    names = [
        name
        for site in sites
        for name, config in configs.items()
        if config.site == site
        and config.gate_per != "static"
        and (config.channels, config.hidden, config.causal) == wanted
    ]
    if not names:
        raise FileNotFoundError(f"a model with gates at {' or '.join(sites)} must be shipped (got {sorted(configs)})")
    return names
