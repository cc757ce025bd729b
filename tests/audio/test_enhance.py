import numpy as np
import pytest
import torch

from dyncp_kernels.audio import enhance
from dyncp_kernels.audio.stft import frame_count
from dyncp_kernels.nn import ConvFSENet


def small_net(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = {"channels": 16, "hidden": 24, "stacks": 1, "site": "output", **overrides}
    model = ConvFSENet(**settings)
    for block in model.blocks:
        if hasattr(block.gate, "expand"):  # scores around 0, so that gates differ between frames
            torch.nn.init.normal_(block.gate.expand.weight, std=2.0)
            torch.nn.init.normal_(block.gate.expand.bias, std=0.3)
    return model.eval()


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class PassThrough(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.config = ConvFSENet(stacks=1).config
        self.calibration = []
        self.eval()

    def forward(self, features, shift=0.0, return_gates=False):
        return torch.ones_like(features), []


@pytest.mark.parametrize("length", [0, 1, 256, 1000, 16001])
def test_a_mask_of_ones_returns_the_signal(length):
    signal = noise(length)
    assert np.abs(enhance(PassThrough(), signal) - signal).max(initial=0.0) < 1e-6


@pytest.mark.parametrize("shape", [(3000,), (1, 3000), (3, 3000)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kind_dtype_and_shape_come_back(shape, dtype):
    model = small_net().fold()
    signal = noise(*shape).astype(dtype)
    array = enhance(model, signal)
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype) == (signal.shape, signal.dtype)
    tensor = enhance(model, torch.from_numpy(signal))
    assert isinstance(tensor, torch.Tensor)
    assert (tensor.shape, tensor.dtype) == (signal.shape, getattr(torch, dtype))
    assert np.array_equal(tensor.numpy(), array)
    assert not tensor.requires_grad


def test_batch_items_do_not_mix():
    model = small_net().fold()
    signals = noise(3, 4000)
    together = enhance(model, signals)
    for signal, result in zip(signals, together):
        assert np.allclose(enhance(model, signal), result, atol=1e-5)


def test_folded_and_trained_forms_agree():
    model = small_net()
    signal = noise(8000)
    assert np.abs(enhance(model, signal) - enhance(model.fold(), signal)).max() < 1e-5


@pytest.mark.parametrize("site", ["none", "output", "hidden", "both"])
def test_gates_are_those_that_were_used(site):
    model = small_net(site=site).fold()
    _, gates = enhance(model, noise(4000), return_gates=True)
    frames = frame_count(4000)
    assert len(gates) == 3
    for block in gates:
        assert (block.out is None) == (site in ("none", "hidden"))
        assert (block.hidden is None) == (site in ("none", "output"))
        for gate, channels in ((block.out, 16), (block.hidden, 24)):
            if gate is not None:
                assert gate.shape == (1, channels, frames)
                assert 0 < gate.float().mean() < 1


def test_budget_moves_usage_through_the_calibration():
    model = small_net()
    model.calibration = [(0.0, -1e3), (1.0, 1e3)]
    folded = model.fold()

    def usage(budget):
        _, gates = enhance(folded, noise(4000), budget=budget, return_gates=True)
        return float(torch.cat([block.out.float().mean((0, 2)) for block in gates]).mean())

    assert usage(0.0) == 0.0
    assert usage(1.0) == 1.0
    assert 0.0 < usage(None) < 1.0
    with pytest.raises(ValueError, match="budget must be between 0 and 1"):
        enhance(folded, noise(10), budget=1.5)
    with pytest.raises(ValueError, match="needs a calibrated gated model"):
        enhance(small_net(), noise(10), budget=0.5)


def test_mistakes_are_named():
    model = small_net()
    with pytest.raises(TypeError, match=r"enhance: samples must be a numpy array or a torch tensor \(got list\)"):
        enhance(model, [0.0, 0.1])
    with pytest.raises(TypeError, match=r"must be float32 or float64 \(got int16\)"):
        enhance(model, np.zeros(10, np.int16))
    with pytest.raises(TypeError, match=r"must be float32 or float64 \(got torch.float16\)"):
        enhance(model, torch.zeros(10, dtype=torch.float16))
    for shape in [(), (0, 10), (1, 2, 10)]:
        with pytest.raises(ValueError, match=r"must be \(N,\) or \(batch, N\)"):
            enhance(model, np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"must be finite \(got NaN or infinity\)"):
        enhance(model, np.array([0.0, np.inf]))
    with pytest.raises(ValueError, match=r"must be finite \(got NaN or infinity\)"):
        enhance(model, np.array([0.0, 1e39]))  # beyond float32
    with pytest.raises(ValueError, match=r"must be within 1e\+06 times full scale \(got 1e\+20\)"):
        enhance(model, np.full(600, 1e20, np.float32))
    assert np.isfinite(enhance(model, np.full(600, 1e6, np.float32))).all()
    with pytest.raises(ValueError, match="must be in eval mode"):
        enhance(small_net().train(), noise(10))
