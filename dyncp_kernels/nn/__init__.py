"""Conv-FSENet with dynamic channel pruning: gates, blocks, the network, its inference form, MACs and files."""

from dyncp_kernels.nn.block import BlockGates, GatedBlock
from dyncp_kernels.nn.calibrate import calibrate, shift_for_budget
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.conv_fsenet import ConvFSENet
from dyncp_kernels.nn.files import load, model_info, save, shipped_models, warm_start
from dyncp_kernels.nn.gate import ChannelGate, GatePool, StaticGate
from dyncp_kernels.nn.inference import FoldedBlock, InferenceConvFSENet, StreamState
from dyncp_kernels.nn.macs import macs_from_gates, macs_per_frame, saved_share
from dyncp_kernels.nn.surrogates import binarize

__all__ = [
    "BlockGates",
    "ChannelGate",
    "ConvFSENet",
    "ConvFSENetConfig",
    "FoldedBlock",
    "GatePool",
    "GatedBlock",
    "InferenceConvFSENet",
    "StaticGate",
    "StreamState",
    "binarize",
    "calibrate",
    "load",
    "macs_from_gates",
    "macs_per_frame",
    "model_info",
    "save",
    "saved_share",
    "shift_for_budget",
    "shipped_models",
    "warm_start",
]
