"""Gated depthwise-separable convolutions and Conv-FSENet with dynamic channel pruning.

``torch.ops.dyncp.gated_conv`` computes only the channels that a gate keeps; :mod:`dyncp_kernels.nn` holds the network
that uses it, :mod:`dyncp_kernels.audio` enhances sound with it. Source of the method: "Scalable Speech Enhancement with
Dynamic Channel Pruning", Miccini et al., ICASSP 2025, arXiv 2412.17121.
"""

from dyncp_kernels import ops
from dyncp_kernels.nn.files import load
from dyncp_kernels.ops import gated_conv, gated_conv_step, gated_conv_step_

__version__ = "0.1.0"
__all__ = ["__version__", "gated_conv", "gated_conv_step", "gated_conv_step_", "load", "ops"]
