import pytest
from typer.testing import CliRunner

from dyncp_kernels.cli import build_app
from dyncp_kernels.engine import folded_bytes
from dyncp_kernels.nn import ConvFSENet, load, save

SMALL = {"channels": 8, "hidden": 12, "stacks": 1}


def run(*arguments):
    return CliRunner().invoke(build_app(), ["export", *map(str, arguments)])


def test_export_writes_the_folded_model_that_the_c_interface_reads(tmp_path):
    path = save(ConvFSENet(**SMALL, site="hidden"), tmp_path / "net")
    result = run(path, "-o", tmp_path / "folded.safetensors")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "folded.safetensors").read_bytes() == folded_bytes(load(path))


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("centred", "folded", "streaming needs a causal network"),
        ("none", "folded", "none"),
        ("net", "no/f", "its folder must exist"),
    ],
)
def test_export_says_what_it_cannot_write(tmp_path, name, out, message):
    save(ConvFSENet(**SMALL, causal=False), tmp_path / "centred")
    save(ConvFSENet(**SMALL), tmp_path / "net")
    result = run(tmp_path / name, "-o", tmp_path / out)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / out).exists()
