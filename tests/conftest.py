from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dyncp_kernels import _extension


def _assert_close(name: str, ref: torch.Tensor, out: torch.Tensor, ratio: float) -> None:
    """Fail unless `out` has the shape of `ref`, no NaN, and an error of at most `ratio` of ref's root mean square."""
    assert out.shape == ref.shape, f"{name}: shape {list(out.shape)}, expected {list(ref.shape)}"
    ref, out = ref.detach().double(), out.detach().double()
    assert torch.isfinite(ref).all(), f"{name}: the reference itself is not finite"
    assert torch.isfinite(out).all(), f"{name}: {int((~torch.isfinite(out)).sum())} values are not finite"
    if ref.numel() == 0:
        return
    error = (out - ref).pow(2).mean().sqrt().item()
    scale = ref.pow(2).mean().sqrt().item()
    assert error <= ratio * max(scale, 1e-8), f"{name}: error {error:.3g} is above {ratio:g} of {scale:.3g}"


def _load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load_script():
    """load_script(path): a Python file that is in no package, as a module of its own."""
    return _load_script


@pytest.fixture(scope="session")
def package_setup():
    """The package's own build."""
    return _load_script(Path(__file__).resolve().parent.parent / "setup.py")


@pytest.fixture(scope="session")
def assert_close():
    """The one comparison of the suite: assert_close(name, ref, out, ratio)."""
    return _assert_close


@pytest.fixture
def with_threads():
    """with_threads(counts, compute): what compute() gives with each of these numbers of threads, a list."""
    before = torch.get_num_threads()

    def results(counts, compute):
        given = []
        for threads in counts:
            torch.set_num_threads(threads)
            given.append(compute())
        return given

    yield results
    torch.set_num_threads(before)


@pytest.fixture
def needs_extension():
    if not _extension.extension_loaded():
        pytest.skip("the native extension is not built")


# The ops have no kernels of their own for these, see csrc/core/isa.h.
_STREAM_SETS = ("avx512vnni", "neondot")
_SETS = tuple(name for name in _extension.supported_instruction_sets() if name not in _STREAM_SETS)


@pytest.fixture(params=_SETS or ("none",))
def each_instruction_set(request):
    """Runs the test once per instruction set of this processor; without the extension once, on the reference."""
    if request.param == "none":
        yield request.param
        return
    before = _extension.instruction_set()
    _extension.set_instruction_set(request.param)
    yield request.param
    _extension.set_instruction_set(before)


@pytest.fixture
def poisoned_empty():
    """Memory that torch hands out uninitialised holds NaN, so that a value nobody wrote shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.utils.deterministic.fill_uninitialized_memory = before[0]
    torch.use_deterministic_algorithms(before[1])
