from pathlib import Path

import numpy as np
import pytest
import torch

from dyncp_kernels.audio import write_audio
from dyncp_kernels.bench.masks import find_recorded, read_biases, read_recorded
from dyncp_kernels.nn import ConvFSENet, calibrate, save

pytest.importorskip("safetensors")
pytest.importorskip("soundfile")

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "record_masks.py"


def test_masks_of_a_model_are_recorded_at_the_wished_densities(tmp_path, load_script):
    script = load_script(SCRIPT)
    torch.manual_seed(0)
    model = ConvFSENet(channels=16, hidden=24, stacks=1, site="hidden").eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.gate.expand.weight, std=2.0)
    model.calibration = calibrate(model, [torch.rand(1, 257, 100)])
    save(model, tmp_path / "model")
    samples = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
    (tmp_path / "audio").mkdir()
    for name in ("a", "b", "c"):
        write_audio(tmp_path / "audio" / f"{name}.wav", samples, 16000)

    out = tmp_path / "recorded"
    out.mkdir()
    script.record(str(tmp_path / "model"), tmp_path / "audio", out, [10, 90], 25, 100)
    found = find_recorded(out)
    assert set(found) == {("hidden", 0.1), ("hidden", 0.9)}
    low, high = (read_recorded(found["hidden", density], 100) for density in (0.1, 0.9))
    assert low.shape == (3, 24, 100)
    assert low.mean() < 0.35 < high.mean()
    expand = [block.gate.expand.bias.detach().numpy() for block in model.fold().blocks]
    np.testing.assert_array_equal(read_biases(found["hidden", 0.1]), expand)

    save(ConvFSENet(channels=16, hidden=24, stacks=1).eval(), tmp_path / "static")
    with pytest.raises(SystemExit, match="must gate the output or the hidden channels"):
        script.record(str(tmp_path / "static"), tmp_path / "audio", out, [25], 25, 100)
