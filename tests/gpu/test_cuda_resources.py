"""Every CUDA source, compiled by nvcc for three GPU generations; registers, spills and shared memory."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
TARGETS = ("sm_80", "sm_90", "sm_100")
REGISTER_LIMIT = 240
SPILL_LIMIT = 32

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The assembler's report of each source, for all targets in one call of nvcc."""
    folder = tmp_path_factory.mktemp("cuda")
    targets = [f"-gencode=arch=compute_{name[3:]},code={name}" for name in TARGETS]

    def build(source):
        command = ["nvcc", "-O3", "-std=c++17", f"-I{ROOT / 'csrc'}", *targets, "-Xptxas", "-v", "--threads", "2"]
        command += ["-Werror", "all-warnings", "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOURCES, pool.map(build, SOURCES)))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_source_compiles_within_the_limits(reports, source):
    report = reports[source]
    assert report.returncode == 0, report.stderr
    for target in TARGETS:
        assert f"for '{target}'" in report.stderr
    registers = [int(found) for found in re.findall(r"Used (\d+) registers", report.stderr)]
    spills = [int(found) for found in re.findall(r"(\d+) bytes spill stores", report.stderr)]
    assert registers
    assert max(registers) <= REGISTER_LIMIT
    assert max(spills) <= SPILL_LIMIT


def test_sums_of_the_step_stay_in_registers(reports):
    """Also those of a kernel that shares weights among 2, 4 or 8 streams."""
    report = next(report.stderr for source, report in reports.items() if source.name == "gated_conv_step.cu")
    frames = re.findall(r"Function properties for \w*?step_togetherI\w*?Li(\d)E\w*\n\s+(\d+) bytes stack frame", report)
    assert {int(streams) for streams, _ in frames} == {2, 4, 8}
    assert len(frames) == 3 * 3 * len(TARGETS)
    assert max(int(stack) for _, stack in frames) <= SPILL_LIMIT


# Shared memory of a block in KB: what sm_80 has, and the least that a GPU with TF32 has.
USUAL_SHARED, LEAST_SHARED = 163, 99


def test_shared_memory_of_the_fused_kernel_fits_every_target(tmp_path):
    """The layout is in the source: print the tiles that keep x where they can, and those that read it again."""
    source = (ROOT / "csrc" / "cuda" / "gated_conv.cu").read_text()
    start, end = source.index("constexpr int kHidden = 64;"), source.index("// x[first .. first + kDepth)")
    program = f"""
#include "cuda/device.h"
#include "cuda/tile_product.h"
namespace dyncp::cuda {{
{source[start:end]}
template <class A, int kOut>
void show(int channels, int hidden) {{
  printf("%d ", Shared<A, kOut, true>::bytes(channels, 8192));
  printf("%d\\n", Shared<A, kOut, false>::bytes(channels, hidden));
}}
}}
int main() {{
  using namespace dyncp::cuda;
  for (int channels : {{128, 256, 512, 1024, 4096}}) {{
    show<ExactProduct, 128>(channels, 6144);
    show<Tf32Product, 128>(channels, 6144);
    show<ShortProduct<BFloat16>, 256>(channels, 8192);
    show<ShortProduct<Half>, 256>(channels, 8192);
  }}
}}
"""
    path = tmp_path / "layout.cpp"
    path.write_text(program)
    includes = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'gpu' / 'emulator'}"]
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    subprocess.run([compiler, "-std=c++17", *includes, str(path), "-o", str(tmp_path / "layout")], check=True)
    lines = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout.splitlines()
    with_x, without_x = zip(*(map(int, line.split()) for line in lines))
    assert max(with_x) <= USUAL_SHARED * 1024
    assert max(without_x) <= LEAST_SHARED * 1024
