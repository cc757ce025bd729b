"""Gated depthwise-separable convolution kernels, and Conv-FSENet with dynamic channel pruning."""

from dyncp_kernels import ops

__version__ = "0.1.0"
__all__ = ["ops"]
