"""The library of the CUDA kernels, built beside a torch without CUDA, finds torch's CUDA library where there is one."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

LOAD = """
import ctypes, sys
torch_cuda, library = sys.argv[1:]
if torch_cuda:
    ctypes.CDLL(torch_cuda)  # As torch loads it: nobody else sees its symbols.
print(ctypes.CDLL(library).answer())
"""


def _library(compiler, path, code, *flags):
    source = path.with_suffix(".c")
    source.write_text(code)
    subprocess.run([*compiler, "-shared", "-fPIC", "-x", "c", str(source), "-o", str(path), *flags], check=True)
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA kernels are built on Linux only")
def test_library_built_without_torchs_cuda_library_uses_the_one_of_its_process(package_setup, monkeypatch, tmp_path):
    if package_setup.find_compiler() is None:
        pytest.skip("no C++ compiler is installed")
    compiler = shlex.split(package_setup.find_compiler())
    monkeypatch.setattr(package_setup, "OBJECTS", tmp_path / "objects")
    flags = package_setup.torch_cuda_flags(compiler, tmp_path / "torch")
    library = _library(
        compiler, tmp_path / "kernels.so", "int of_torch(void); int answer(void) { return of_torch(); }", *flags
    )
    (tmp_path / "elsewhere").mkdir()
    real = _library(
        *(compiler, tmp_path / "elsewhere" / "libtorch_cuda.so", "int of_torch(void) { return 42; }"),
        "-Wl,-soname,libtorch_cuda.so",
    )
    found = subprocess.run([sys.executable, "-c", LOAD, real, library], capture_output=True, text=True)
    assert found.stdout == "42\n", found.stderr
    missing = subprocess.run([sys.executable, "-c", LOAD, "", library], capture_output=True, text=True)
    assert "libtorch_cuda.so" in missing.stderr


def test_torchs_own_cuda_library_is_linked_where_it_is(package_setup, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_cuda.so").touch()
    assert package_setup.torch_cuda_flags(["c++"], tmp_path) == ["-ltorch_cuda"]
