"""Channel gates: a tiny network that decides, from a block's input, which channels the block computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dyncp_kernels.nn.surrogates import SURROGATES, binarize
from dyncp_kernels.ops import channel_gate
from dyncp_kernels.ops.pooling import POOLINGS, pool_over_time

__all__ = ["ChannelGate", "GatePool", "StaticGate"]


class GatePool(nn.Module):
    """Pooling over time in front of a gate; see :func:`dyncp_kernels.ops.pooling.pool_over_time` for the kinds.

    Args:
        kind: ``average``, ``exponential``, ``window``, ``centred`` or ``global``.
        window: in frames, for ``exponential``, ``window`` and ``centred``.
    """

    def __init__(self, kind: str = "exponential", window: int = 8):
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"GatePool: kind must be one of {list(POOLINGS)} (got {kind!r})")
        if window < 1:
            raise ValueError(f"GatePool: window must be at least 1 frame (got {window})")
        self.kind = kind
        self.window = window

    @property
    def rate(self) -> float:
        """The a of the exponential average."""
        return 2.0 / (self.window + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``x`` (B, C, T) to the same shape."""
        return pool_over_time(x, self.kind, self.window)

    def initial_state(self, batch: int, channels: int, like: Tensor) -> dict[str, Tensor]:
        """State before the first frame, for :meth:`step`."""
        depth = self.window if self.kind == "window" else 1
        return {
            "history": like.new_zeros(batch, channels, depth),
            "count": torch.zeros((), dtype=torch.int64, device=like.device),
        }

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Pool one frame ``x`` (B, C); returns the pooled frame and the next state.

        Raises:
            RuntimeError: the pooling looks ahead.
        """
        if self.kind in ("centred", "global"):
            raise RuntimeError(f"GatePool.step: pooling must be causal (got {self.kind!r})")
        history, count = state["history"], state["count"]
        seen = (count + 1).to(x.dtype)
        if self.kind == "window":
            history = torch.cat([history[..., 1:], x[..., None]], -1)
            pooled = history.sum(-1) / seen.clamp(max=self.window)
        elif self.kind == "average":
            # The mean rather than the sum, which would lose ever more digits in the course of a day.
            pooled = history[..., 0] + (x - history[..., 0]) / seen
            history = pooled[..., None]
        else:
            previous = torch.where(count == 0, x, history[..., 0])
            pooled = previous + self.rate * (x - previous)
            history = pooled[..., None]
        return pooled, {"history": history, "count": count + 1}


class ChannelGate(nn.Module):
    """The gate of dynamic channel pruning: pool over time, 1x1 conv, ReLU, 1x1 conv, Heaviside step at 0.

    ``scores = W2 relu(W1 pool(x) + b1) + b2``, ``m = 1 if scores + shift > 0 else 0``. The last bias starts positive,
    so every channel is kept at initialisation. Source: arXiv 2412.17121; the width d = 8 fits its overhead.

    Args:
        channels: channels C of the block's input.
        gates: number of gates G.
        hidden: width d of the gate network.
        pooling: a kind of :class:`GatePool`.
        window: its window in frames.
        per: ``"frame"`` for gates (B, G, T), ``"utterance"`` for (B, G, 1) from the mean over the clip.
        surrogate: how the step is differentiated; a name of :mod:`dyncp_kernels.nn.surrogates`.
        slope: slope of the surrogate.
    """

    pool: GatePool

    def __init__(
        self,
        channels: int,
        gates: int,
        hidden: int = 8,
        pooling: str = "exponential",
        window: int = 8,
        per: str = "frame",
        surrogate: str = "sigmoid",
        slope: float = 2.0,
    ):
        super().__init__()
        if per not in ("frame", "utterance"):
            raise ValueError(f"ChannelGate: per must be 'frame' or 'utterance' (got {per!r})")
        if surrogate not in SURROGATES:
            raise ValueError(f"ChannelGate: surrogate must be one of {sorted(SURROGATES)} (got {surrogate!r})")
        self.channels, self.gates, self.per = channels, gates, per
        self.surrogate, self.slope = surrogate, slope
        self.pool = GatePool(pooling, window)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, gates)
        nn.init.ones_(self.expand.bias)
        with torch.no_grad():
            self.expand.weight.mul_(0.1)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one decision."""
        return self.reduce.weight.numel() + self.expand.weight.numel()

    def _decide(self, pooled: Tensor) -> Tensor:
        """Scores (B, G, T) from the pooled products (B, d, T)."""
        hidden = F.relu(pooled + self.reduce.bias[:, None])
        return torch.matmul(self.expand.weight, hidden) + self.expand.bias[:, None]

    def scores(self, x: Tensor) -> Tensor:
        """Gate scores of ``x`` (B, C, T): (B, G, T) per frame, (B, G, 1) per utterance."""
        # Pooling and the first convolution are both linear, so they may trade places: pooling d channels instead of C
        # gives the same scores for less work and less state. The bias is added after, for weights that sum to 1.
        reduced = torch.matmul(self.reduce.weight, x)
        if self.per == "utterance":
            pooled = reduced.mean(-1, keepdim=True) if x.shape[-1] else reduced.new_zeros(*reduced.shape[:-1], 1)
        else:
            pooled = self.pool(reduced)
        return self._decide(pooled)

    def forward(self, x: Tensor, shift: float | Tensor = 0.0) -> Tensor:
        """Binary gates of ``x``, floating point with the surrogate's gradient; a sampled draw only while training."""
        scores = self.scores(x) + shift
        surrogate = "sigmoid" if self.surrogate == "gumbel" and not self.training else self.surrogate
        return binarize(scores, surrogate, self.slope)

    def decide(self, x: Tensor, shift: float = 0.0) -> Tensor:
        """Boolean gates of ``x`` without gradient, as one op: (B, G, T) per frame, (B, G, 1) per utterance."""
        decided = channel_gate(
            x,
            self.reduce.weight,
            self.reduce.bias,
            self.expand.weight,
            self.expand.bias,
            pooling="global" if self.per == "utterance" else self.pool.kind,
            window=self.pool.window,
            shift=shift,
        )
        return decided if self.per == "utterance" or self.pool.kind != "global" else decided.expand(-1, -1, x.shape[-1])

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Pooling state before the first frame, with the dtype and device of ``like``."""
        return self.pool.initial_state(batch, self.reduce.out_features, like)

    def step(self, x: Tensor, state: dict[str, Tensor], shift: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Boolean gates (B, G) of one frame ``x`` (B, C), and the next pooling state.

        Raises:
            RuntimeError: the gate looks at the whole clip.
        """
        if self.per == "utterance":
            raise RuntimeError("ChannelGate.step: per must be 'frame' (got 'utterance', which needs the whole clip)")
        pooled, state = self.pool.step(F.linear(x, self.reduce.weight), state)
        return self._decide(pooled[..., None])[..., 0] + shift > 0, state


class StaticGate(nn.Module):
    """One learned mask for all inputs: static pruning behind the interface of :class:`ChannelGate`.

    Args:
        gates: number of gates G.
        surrogate: how the step is differentiated.
        slope: slope of the surrogate.
    """

    def __init__(self, gates: int, surrogate: str = "sigmoid", slope: float = 2.0):
        super().__init__()
        self.gates, self.surrogate, self.slope = gates, surrogate, slope
        self.score = nn.Parameter(torch.ones(gates))

    @property
    def macs(self) -> int:
        """A fixed mask costs nothing."""
        return 0

    def scores(self, x: Tensor) -> Tensor:
        """The learned scores as (B, G, 1)."""
        return self.score[None, :, None].expand(x.shape[0], -1, 1).to(x.dtype)

    def forward(self, x: Tensor, shift: float | Tensor = 0.0) -> Tensor:
        """Binary gates (B, G, 1), floating point with the surrogate's gradient."""
        surrogate = "sigmoid" if self.surrogate == "gumbel" and not self.training else self.surrogate
        return binarize(self.scores(x) + shift, surrogate, self.slope)

    def decide(self, x: Tensor, shift: float = 0.0) -> Tensor:
        """Boolean gates (B, G, 1)."""
        return self.scores(x) + shift > 0

    def initial_state(self, batch: int, like: Tensor) -> dict[str, Tensor]:
        """Nothing to remember."""
        return {}

    def step(self, x: Tensor, state: dict[str, Tensor], shift: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Boolean gates (B, G); the state passes through."""
        return (self.score + shift > 0)[None].expand(x.shape[0], -1), state
