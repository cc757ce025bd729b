"""The spectral loss and L_DCP against their formulas."""

import pytest
import torch

from dyncp_kernels.nn import BlockGates
from dyncp_kernels.training.losses import active_level, compressed_spectral_loss, dcp_loss, spectral_target, usage


def test_spectral_loss_equals_its_definition_on_complex_spectra() -> None:
    torch.manual_seed(0)
    noisy, clean = (torch.randn(2, 5, 7, dtype=torch.complex128) for _ in range(2))
    mask, level = torch.rand(2, 5, 7, dtype=torch.float64), torch.tensor([0.5, 2.0], dtype=torch.float64)
    estimate, target = mask * noisy / level[:, None, None], clean / level[:, None, None]
    s, t = (estimate.abs() + 1e-9) ** 0.3, (target.abs() + 1e-9) ** 0.3
    complex_error = (torch.polar(s, estimate.angle()) - torch.polar(t, target.angle())).abs().square()
    expected = (0.7 * (s - t).square() + 0.3 * complex_error).mean()
    torch.testing.assert_close(compressed_spectral_loss(mask, spectral_target(noisy, clean, level)), expected)


def test_spectral_loss_of_clean_speech_behind_an_open_mask_is_zero() -> None:
    clean = torch.randn(1, 5, 7, dtype=torch.complex128)
    loss = compressed_spectral_loss(torch.ones(1, 5, 7), spectral_target(clean, clean, torch.ones(1)))
    assert loss.item() == pytest.approx(0.0, abs=1e-9)


def test_active_level_counts_only_frames_above_the_threshold() -> None:
    loud, soft = torch.full((512 * 3,), 0.2), torch.full((512 * 5,), 0.001)
    assert active_level(torch.cat([loud, soft])[None]).item() == pytest.approx(0.2)


def test_active_level_of_a_soft_clip_is_its_rms_and_never_zero() -> None:
    assert active_level(torch.full((1, 2048), 0.01)).item() == pytest.approx(0.01)
    assert active_level(torch.zeros(1, 2048)).item() == pytest.approx(1e-4)


def test_dcp_loss_is_the_mean_squared_distance_from_the_target() -> None:
    half, none = torch.tensor([[[1.0], [0.0]]]), torch.zeros(1, 4, 3)
    gates = [BlockGates(half, None), BlockGates(None, none)]
    assert usage(gates).tolist() == [[0.5], [0.0]]
    assert dcp_loss(gates, torch.tensor([0.25])).item() == pytest.approx((0.25**2 + 0.25**2) / 2)


def test_dcp_loss_holds_each_part_of_a_batch_to_its_own_target() -> None:
    first, second = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    gates = [BlockGates(torch.cat([first, second]), None)]
    assert usage(gates, 2).tolist() == [[0.0, 1.0]]
    assert dcp_loss(gates, torch.tensor([0.25, 0.5])).item() == pytest.approx((0.25**2 + 0.5**2) / 2)
