import numpy as np
import pytest

from dyncp_kernels.bench.masks import (
    block_gates,
    find_recorded,
    random_masks,
    read_biases,
    read_recorded,
    write_recorded,
)
from dyncp_kernels.nn import ConvFSENetConfig


def slow_masks(blocks, channels, frames, density=0.25, flips=0.005, seed=0):
    """Masks that hardly change, as a trained model's do."""
    draw = np.random.default_rng(seed)
    masks = np.empty((blocks, channels, frames), dtype=bool)
    now = draw.random((blocks, channels)) < density
    for frame in range(frames):
        redrawn = draw.random(now.shape) < flips
        now = np.where(redrawn, draw.random(now.shape) < density, now)
        masks[:, :, frame] = now
    return masks


def test_random_masks_have_the_density_and_no_memory():
    masks = random_masks(4, 256, 300, 0.25)
    assert masks.mean() == pytest.approx(0.25, abs=0.01)
    assert (masks[..., 1:] != masks[..., :-1]).mean() == pytest.approx(2 * 0.25 * 0.75, abs=0.01)
    union = masks[..., :288].reshape(4, 256, 18, 16).any(-1).mean()
    assert union == pytest.approx(1 - 0.75**16, abs=0.005)
    assert not random_masks(1, 8, 8, 0.0).any()
    assert random_masks(1, 8, 8, 1.0).all()
    with pytest.raises(ValueError, match="density must be between 0 and 1"):
        random_masks(1, 8, 8, 1.5)


def test_recorded_masks_are_cut_joined_and_found_by_site_and_percent(tmp_path):
    masks = slow_masks(3, 24, 250)
    write_recorded([list(masks[..., :100]), list(masks[..., 100:])], tmp_path / "hidden_25.npz", 220)
    (tmp_path / "other.npz").write_bytes(b"")
    assert find_recorded(tmp_path) == {("hidden", 0.25): tmp_path / "hidden_25.npz"}
    np.testing.assert_array_equal(read_recorded(tmp_path / "hidden_25.npz", 150), masks[..., :150])
    longer = read_recorded(tmp_path / "hidden_25.npz", 300)
    np.testing.assert_array_equal(longer[..., 220:], masks[..., :80])
    assert read_biases(tmp_path / "hidden_25.npz") is None
    biases = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    write_recorded([list(masks)], tmp_path / "hidden_25.npz", 250, biases)
    np.testing.assert_array_equal(read_biases(tmp_path / "hidden_25.npz"), biases)
    np.testing.assert_array_equal(read_recorded(tmp_path / "hidden_25.npz", 250), masks)


def test_recorded_masks_of_the_full_network_stay_small(tmp_path):
    write_recorded([list(slow_masks(9, 256, 1000))], tmp_path / "hidden_25.npz", 1000)
    assert (tmp_path / "hidden_25.npz").stat().st_size < 200_000


def test_items_of_a_batch_have_different_gates_at_each_site():
    for site, channels in (("output", 16), ("hidden", 24), ("both", 40)):
        config = ConvFSENetConfig(channels=16, hidden=24, stacks=1, site=site)
        masks = random_masks(3, channels, 60, 0.5)
        gates = block_gates(config, masks, 3, 50)
        joined = [part for part in (gates[1].out, gates[1].hidden) if part is not None]
        second = np.concatenate([part[1].numpy() for part in joined])
        np.testing.assert_array_equal(second, np.take(masks[1], np.arange(20, 70) % 60, axis=1))
        assert not np.array_equal(joined[0][0], joined[0][1])


def test_masks_of_another_geometry_are_refused():
    with pytest.raises(ValueError, match=r"masks must be \(3, 24, frames\)"):
        block_gates(
            ConvFSENetConfig(channels=16, hidden=24, stacks=1, site="hidden"), random_masks(3, 16, 9, 0.5), 1, 9
        )
