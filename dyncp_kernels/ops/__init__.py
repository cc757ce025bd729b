"""Ops of the package, one module each: ``torch.ops.dyncp.*``, with a plain PyTorch reference beside every op."""

from dyncp_kernels._extension import warn_when_missing
from dyncp_kernels.ops.channel_gate import channel_gate, channel_gate_reference
from dyncp_kernels.ops.gated_conv import gated_conv
from dyncp_kernels.ops.gated_conv_step import gated_conv_step, gated_conv_step_
from dyncp_kernels.ops.pointwise import pointwise, pointwise_reference
from dyncp_kernels.ops.reference import gated_conv_reference, gated_conv_step_reference

warn_when_missing()

__all__ = [
    "channel_gate",
    "channel_gate_reference",
    "gated_conv",
    "gated_conv_reference",
    "gated_conv_step",
    "gated_conv_step_",
    "gated_conv_step_reference",
    "pointwise",
    "pointwise_reference",
]
