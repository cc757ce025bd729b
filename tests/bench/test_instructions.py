import json
import shutil

import pytest

from dyncp_kernels._extension import extension_loaded

if not extension_loaded():
    pytest.skip("needs the native extension", allow_module_level=True)

from dyncp_kernels.bench import instructions
from dyncp_kernels.bench.engine_driver import reason_for_no_driver
from dyncp_kernels.bench.instructions import count_instructions, write_instructions
from dyncp_kernels.bench.suites import Plan
from dyncp_kernels.nn import ConvFSENetConfig


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")
@pytest.mark.skipif(reason_for_no_driver() is not None, reason="needs a build in the source folder")
def test_counts_are_right_for_right_outputs_and_fall_with_the_density(tmp_path):
    plan = Plan(config=ConvFSENetConfig(channels=32, hidden=64, stacks=1))
    rows = count_instructions(densities=(0.0, 0.25), precisions=("float32",), plan=plan)
    assert all(row.correct for row in rows)
    static, *gated = rows
    assert static.saving_instructions == 0.0
    counts = {(row.site, row.density): row.instructions_per_frame for row in gated}
    for site in ("output", "hidden"):
        assert counts[site, 0.0] < counts[site, 0.25]
    assert counts["hidden", 0.0] < static.instructions_per_frame
    write_instructions(rows, tmp_path / "i.json")
    assert len(json.loads((tmp_path / "i.json").read_text())["rows"]) == 5
    assert len((tmp_path / "i.csv").read_text().splitlines()) == 6


def test_missing_valgrind_is_said(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs valgrind"):
        count_instructions()
