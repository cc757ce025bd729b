"""Which of the shipped models the commands use by default, chosen by geometry rather than by name."""

from __future__ import annotations

from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.files import model_info, shipped_models

__all__ = ["pruned_model", "static_model"]


def static_model() -> str:
    """Name of the shipped network without gates, of the default width.

    Raises:
        FileNotFoundError: there is none.
    """
    return _first(("none",))


def pruned_model() -> str:
    """Name of the shipped network with dynamic channel pruning: at the output site, as in the paper, else any.

    Raises:
        FileNotFoundError: there is none.
    """
    return _first(("output", "hidden", "both"))


def _first(sites: tuple[str, ...]) -> str:
    default = ConvFSENetConfig()
    wanted = (default.channels, default.hidden, default.causal)
    configs = {name: ConvFSENetConfig.from_dict(model_info(name)["config"]) for name in shipped_models()}
    for site in sites:
        for name, config in configs.items():
            is_wanted = (config.channels, config.hidden, config.causal) == wanted and config.gate_per != "static"
            if is_wanted and config.site == site:
                return name
    raise FileNotFoundError(f"a model with gates at {' or '.join(sites)} must be shipped (got {sorted(configs)})")
