import subprocess
import sys

import numpy as np
import pytest

from dyncp_kernels.evaluation.figure import channel_state_figure


def signals(seconds=1.0):
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, int(16000 * seconds))).astype(np.float32) * 0.1


def masks(blocks, frames=64):
    rng = np.random.default_rng(1)
    return [rng.random((channels, frames)) < 0.25 for channels in (128, 256, 384)[:blocks]]


def pixels(path):
    from matplotlib.image import imread

    return imread(path)


def test_kept_channels_are_white_and_omitted_ones_black(tmp_path):
    def shares(state):
        path = tmp_path / f"{state}.png"
        channel_state_figure(path, *signals(), [np.full((128, 64), state)] * 3)
        image = pixels(path)
        panels = image[image.shape[0] // 2 : -200, 300:-300, :3]
        return (panels.max(-1) < 0.02).mean(), (panels.min(-1) > 0.98).mean()

    black_when_off, _ = shares(False)
    black_when_on, white_when_on = shares(True)
    assert black_when_off > 0.6
    assert black_when_on < 0.05
    assert white_when_on > 0.8


def test_every_block_gets_its_panel(tmp_path):
    heights = []
    for blocks in (0, 1, 3):
        channel_state_figure(tmp_path / "a.png", *signals(), masks(blocks), title="a title")
        heights.append(pixels(tmp_path / "a.png").shape[0])
    assert heights[0] < heights[1] < heights[2]


def test_suffix_chooses_the_format(tmp_path):
    channel_state_figure(tmp_path / "a.svg", *signals(), masks(2), labels=["first", "second"])
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_no_window_system_and_no_pyplot_are_needed(tmp_path):
    code = (
        "import sys, numpy as np\n"
        "from dyncp_kernels.evaluation.figure import channel_state_figure\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"channel_state_figure({str(tmp_path / 'a.png')!r}, np.ones(800), np.ones(800), [])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"must be \(N,\) of one length \(got \(800,\), \(799,\)\)"):
        channel_state_figure(tmp_path / "a.png", np.zeros(800), np.zeros(799), [])
    with pytest.raises(ValueError, match=r"masks must be \(channels, frames\) \(got \(4,\)\)"):
        channel_state_figure(tmp_path / "a.png", np.zeros(800), np.zeros(800), [np.ones(4, dtype=bool)])
