"""Which part of a grid of tiles and blocks a program has."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["tile_and_block"]


@triton.jit
def tile_and_block(size, BLOCK: tl.constexpr):  # noqa: N803
    """The tile of frames, as 64-bit, and the block of `size` channels of this program.

    The blocks of a tile are neighbours in the grid and so run at about the same time: what they read of the tile's
    frames comes from memory once and from the cache after that.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(size, BLOCK)
    return (program // blocks).to(tl.int64), program % blocks
