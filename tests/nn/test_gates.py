"""Gate pooling, binarisation and the two gate modules."""

import pytest
import torch

from dyncp_kernels.nn import ChannelGate, GatePool, StaticGate, binarize
from dyncp_kernels.nn.surrogates import SURROGATES
from dyncp_kernels.ops.pooling import pool_over_time

CAUSAL = ["average", "exponential", "window"]


def _pool_by_definition(kind: str, window: int, x: torch.Tensor) -> torch.Tensor:
    frames = x.shape[-1]
    pooled = []
    for t in range(frames):
        if kind == "average":
            pooled.append(x[..., : t + 1].mean(-1))
        elif kind == "window":
            pooled.append(x[..., max(t + 1 - window, 0) : t + 1].mean(-1))
        elif kind == "exponential":
            previous = pooled[-1] if pooled else x[..., 0]
            pooled.append(previous + 2 / (window + 1) * (x[..., t] - previous))
        elif kind == "centred":
            left = window // 2
            pooled.append(x[..., max(t - left, 0) : t - left + window].mean(-1))
        else:
            pooled.append(x.mean(-1))
    return torch.stack(pooled, -1)


@pytest.mark.parametrize("kind", [*CAUSAL, "centred", "global"])
@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("frames", [1, 5, 600])
def test_pooling_follows_its_definition(kind: str, window: int, frames: int) -> None:
    x = torch.randn(2, 3, frames, dtype=torch.float64)
    torch.testing.assert_close(GatePool(kind, window)(x), _pool_by_definition(kind, window, x))


@pytest.mark.parametrize("kind", [*CAUSAL, "centred", "global"])
@pytest.mark.parametrize("shape", [(20,), (3, 20), (2, 3, 4, 20)])
def test_pooling_takes_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    expected = torch.stack([pool_over_time(row[None, None], kind, 4)[0, 0] for row in x.reshape(-1, 20)])
    torch.testing.assert_close(pool_over_time(x, kind, 4), expected.reshape(shape))


@pytest.mark.parametrize("kind", CAUSAL)
def test_pooling_frame_by_frame_equals_pooling_the_clip(kind: str) -> None:
    pool = GatePool(kind, 5)
    x = torch.randn(2, 3, 23, dtype=torch.float64)
    state = pool.initial_state(2, 3, x)
    frames = []
    for t in range(x.shape[-1]):
        pooled, state = pool.step(x[..., t], state)
        frames.append(pooled)
    torch.testing.assert_close(torch.stack(frames, -1), pool(x))


def test_a_running_average_does_not_drift_in_a_day() -> None:
    x = torch.full((1, 2), 0.3)
    state = {"history": x[..., None], "count": torch.tensor(24 * 3600 * 125)}
    pooled, _ = GatePool("average").step(x, state)
    assert torch.equal(pooled, x)


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_pooling_never_sees_the_future(kind: str) -> None:
    x = torch.randn(1, 2, 30)
    changed = x.clone()
    changed[..., 20:] += 100
    pool = GatePool(kind, 6)
    torch.testing.assert_close(pool(x)[..., :20], pool(changed)[..., :20], rtol=0, atol=0)


def test_pooling_an_empty_clip_gives_an_empty_clip() -> None:
    assert GatePool("window", 4)(torch.zeros(1, 2, 0)).shape == (1, 2, 0)


@pytest.mark.parametrize("kind", ["centred", "global"])
def test_pooling_that_looks_ahead_refuses_to_stream(kind: str) -> None:
    pool = GatePool(kind, 4)
    with pytest.raises(RuntimeError, match="must be causal"):
        pool.step(torch.zeros(1, 2), pool.initial_state(1, 2, torch.zeros(1)))


@pytest.mark.parametrize("surrogate", sorted(SURROGATES))
def test_binarize_gives_exact_zeros_and_ones_and_a_gradient(surrogate: str) -> None:
    torch.manual_seed(0)
    scores = torch.randn(1000, requires_grad=True)
    gates = binarize(scores, surrogate, 2.0)
    assert set(gates.detach().unique().tolist()) == {0.0, 1.0}
    gates.sum().backward()
    assert scores.grad is not None
    assert (scores.grad > 0).all()


def test_straight_through_gradient_is_its_slope() -> None:
    scores = torch.tensor([-5.0, 0.1, 3.0], requires_grad=True)
    binarize(scores, "straight_through", 1.0).sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [1.0, 1.0, 1.0]


def test_sigmoid_gradient_is_the_derivative_of_the_sigmoid() -> None:
    scores = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    binarize(scores, "sigmoid", 3.0).sum().backward()
    s = torch.sigmoid(3.0 * scores.detach())
    torch.testing.assert_close(scores.grad, 3.0 * s * (1 - s))


def test_gumbel_keeps_a_gate_with_the_sigmoid_of_its_score() -> None:
    torch.manual_seed(0)
    share = binarize(torch.full((200_000,), 0.7), "gumbel", 1.0).mean()
    assert share.item() == pytest.approx(torch.sigmoid(torch.tensor(0.7)).item(), abs=0.005)


def test_a_score_of_zero_drops_the_channel() -> None:
    assert binarize(torch.zeros(1)).item() == 0.0


def test_unknown_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogate must be one of"):
        binarize(torch.zeros(1), "relu")


def test_all_gates_are_open_at_initialisation() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(16, 32)
    assert gate(torch.randn(4, 16, 50)).min().item() == 1.0


def test_shift_moves_usage_from_none_to_all() -> None:
    torch.manual_seed(0)
    gate = ChannelGate(16, 32).eval()
    x = torch.randn(2, 16, 50)
    usages = [gate(x, shift).mean().item() for shift in (-100.0, -1.0, 100.0)]
    assert usages[0] == 0.0
    assert usages[2] == 1.0
    assert 0.0 <= usages[1] <= 1.0


def test_utterance_gates_have_one_decision_per_clip_and_refuse_to_stream() -> None:
    gate = ChannelGate(4, 6, per="utterance")
    assert gate(torch.randn(3, 4, 20)).shape == (3, 6, 1)
    assert gate(torch.randn(3, 4, 0)).shape == (3, 6, 1)
    with pytest.raises(RuntimeError, match="per must be 'frame'"):
        gate.step(torch.zeros(1, 4), {})


def test_static_gate_ignores_its_input() -> None:
    gate = StaticGate(6)
    with torch.no_grad():
        gate.score.copy_(torch.tensor([1.0, -1.0, 2.0, -2.0, 0.0, 0.5]))
    expected = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    torch.testing.assert_close(gate(torch.randn(2, 4, 7)), expected[None, :, None].expand(2, 6, 1))


def test_gumbel_is_deterministic_in_evaluation_mode() -> None:
    gate = ChannelGate(4, 6, surrogate="gumbel").eval()
    x = torch.randn(1, 4, 9)
    torch.testing.assert_close(gate(x), (gate.scores(x) > 0).float())
