import pytest

from dyncp_kernels.bench.narrower import dense_config, width_of_equal_macs, width_of_equal_time
from dyncp_kernels.nn import ConvFSENetConfig, macs_per_frame


@pytest.mark.parametrize(
    ("site", "hidden_kept", "out_kept", "width"), [("hidden", 64, 128, 76), ("output", 256, 32, 169)]
)
def test_equal_macs_at_a_quarter_of_the_channels(site, hidden_kept, out_kept, width):
    config = ConvFSENetConfig(site=site)
    macs = macs_per_frame(config, hidden_kept, out_kept)
    assert width_of_equal_macs(config, macs) == width
    assert macs_per_frame(dense_config(config, width)) == pytest.approx(macs, rel=0.01)


def test_equal_time_is_interpolated_and_stays_inside_what_was_measured():
    times = {64: 10.0, 128: 20.0, 192: 19.0, 256: 40.0}
    assert width_of_equal_time(times, 15.0) == 96
    assert width_of_equal_time(times, 1.0) == 64
    assert width_of_equal_time(times, 99.0) == 256
