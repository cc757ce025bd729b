"""Whether torch allows float32 products on a GPU to run as TF32."""

from __future__ import annotations

import torch

__all__ = ["tf32_allowed"]


def tf32_allowed() -> bool:
    """True where torch's own matrix products may use TF32 on CUDA, however that was asked for.

    ``torch.set_float32_matmul_precision``, ``allow_tf32`` and ``fp32_precision`` all show here;
    ``torch.get_float32_matmul_precision`` raises once the last of them was used.
    """
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")
