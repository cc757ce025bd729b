"""What L_DCP asks of a batch: targets of its parts, and the shifts of the gate scores that mean them."""

import torch

from dyncp_kernels.training.config import GateLossConfig
from dyncp_kernels.training.operating_point import operating_point


def _point(config: GateLossConfig, step: int = 1000, batch: int = 8):
    return operating_point(config, batch, step, torch.Generator().manual_seed(step))


def test_without_budgets_the_target_ramps_linearly_from_one_and_nothing_is_shifted() -> None:
    config = GateLossConfig(target=0.25, ramp_steps=100)
    points = [_point(config, step) for step in (0, 50, 100, 1000)]
    assert [p.targets.tolist() for p in points] == [[1.0], [0.625], [0.25], [0.25]]
    assert all(p.shifts.shape == (8, 1, 1) and not p.shifts.any() for p in points)
    assert _point(GateLossConfig(target=0.25), 0).targets.tolist() == [0.25]


def test_half_of_a_batch_keeps_the_target_and_its_last_quarters_have_budgets() -> None:
    config = GateLossConfig(target=0.25, budgets=(0.1, 0.75))
    targets, shifts = _point(config)
    assert targets[:2].tolist() == [0.25, 0.25]
    assert 0.1 <= targets[2] < 0.25 < targets[3] <= 0.75
    assert not shifts[:4].any()
    expected = targets[2:].logit() - torch.tensor(0.25).logit()
    torch.testing.assert_close(shifts[4:].flatten(), expected.repeat_interleave(2))


def test_a_larger_budget_has_a_larger_shift_and_all_channels_a_finite_one() -> None:
    config = GateLossConfig(target=0.25, budgets=(0.0, 1.0))
    targets, shifts = zip(*(_point(config, step) for step in range(300)))
    order = torch.stack(targets).flatten().argsort()
    assert (torch.stack([s[::2].flatten() for s in shifts]).flatten()[order].diff() >= 0).all()
    assert torch.stack(targets).max() > 0.99
    assert torch.stack(targets).min() < 0.01
    assert torch.stack(shifts).abs().max() < 6.0


def test_budgets_are_drawn_anew_every_step_and_begin_at_all_channels() -> None:
    config = GateLossConfig(target=0.25, ramp_steps=100, budgets=(0.1, 1.0))
    targets, shifts = _point(config, 0)
    assert targets.tolist() == [1.0] * 4
    assert not shifts.any()
    assert _point(config, 200).targets[2] != _point(config, 201).targets[2]
