import platform

import torch
from typer.testing import CliRunner

from dyncp_kernels import _extension
from dyncp_kernels.cli import build_app, environment
from dyncp_kernels.nn import files, save
from dyncp_kernels.nn.conv_fsenet import ConvFSENet


def run():
    result = CliRunner(env={"COLUMNS": "140"}).invoke(build_app(), ["info"])
    assert result.exit_code == 0, result.output
    return result.output


def test_info_prints_versions_and_the_instruction_set_in_use():
    output = run()
    for fact in (torch.__version__, platform.python_version(), _extension.instruction_set(), "soundfile"):
        assert fact in output


def test_info_lists_the_shipped_models_with_their_macs(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MODELS", tmp_path)
    save(ConvFSENet(), tmp_path / "a-static-net", {"note": "for a test"})
    output = run()
    assert "a-static-net" in output
    assert "662,528" in output
    assert "for a test" in output


def test_without_the_extension_info_says_so_and_how_to_build_it(monkeypatch):
    monkeypatch.setattr(environment, "extension_loaded", lambda: False)
    assert "pip install . --no-build-isolation" in run()


def test_implementation_tells_the_reference_from_kernels(monkeypatch):
    dump = "CPU: registered at a/b.cpp:3 :: (none) [ boxed ]\nCUDA: registered at c/d.py:9 :: (none) [ boxed ]\n"
    monkeypatch.setattr(torch._C, "_dispatch_dump", lambda op: dump)
    assert environment.implementation("CPU") == "compiled"
    assert environment.implementation("CUDA") == "reference"
