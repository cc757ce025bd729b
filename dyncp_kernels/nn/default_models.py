"""Which of the shipped models the commands use by default, chosen by geometry rather than by name."""

from __future__ import annotations

from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.files import model_info, shipped_models

__all__ = ["narrower_models", "pruned_models", "static_model"]

_DEFAULT = ConvFSENetConfig()


def static_model() -> str:
    """Name of the shipped network without gates, of the default width.

    Raises:
        FileNotFoundError: there is none.
    """
    return _required("none")[0]


def pruned_models() -> list[str]:
    """Names of the shipped networks with dynamic channel pruning: at the output site, as in the paper, first.

    Raises:
        FileNotFoundError: there is none.
    """
    return _required("output", "hidden", "both")


def narrower_models() -> list[str]:
    """Names of the shipped networks without gates and with fewer hidden channels, which pruned ones have to beat."""
    return [name for name, config in _causal().items() if config.site == "none" and config.hidden < _DEFAULT.hidden]


def _required(*sites: str) -> list[str]:
    configs = {name: config for name, config in _causal().items() if config.hidden == _DEFAULT.hidden}
    names = [name for site in sites for name, config in configs.items() if config.site == site]
    if not names:
        raise FileNotFoundError(f"a model with gates at {' or '.join(sites)} must be shipped (got {shipped_models()})")
    return names


def _causal() -> dict[str, ConvFSENetConfig]:
    """Shipped causal networks of the default outer width whose gates, if any, change over time."""
    configs = {name: ConvFSENetConfig.from_dict(model_info(name)["config"]) for name in shipped_models()}
    return {
        name: config
        for name, config in configs.items()
        if (config.channels, config.causal) == (_DEFAULT.channels, _DEFAULT.causal) and config.gate_per != "static"
    }
