"""Instructions per frame of the streaming engine under valgrind's callgrind: a companion of the times without noise.

Valgrind has no AVX-512, so the counts are those of the widest instruction set that it runs.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dyncp_kernels._optional import require
from dyncp_kernels.bench.engine_driver import build_driver, run_masks, write_case
from dyncp_kernels.bench.machine import machine_header
from dyncp_kernels.bench.suites import DENSITIES, Plan, gated_works
from dyncp_kernels.bench.workload import Workload, synthetic_workload
from dyncp_kernels.engine import PRECISIONS

__all__ = ["InstructionRow", "count_instructions", "instruction_table", "write_instructions"]

_FRAMES = 64
_COLLECTED = re.compile(r"Collected\s*:\s*(\d+)")


@dataclass(frozen=True)
class InstructionRow:
    """Instructions of one network; savings are against the static network in the same dtype.

    Attributes:
        site: gated channels.
        density: nominal share of channels kept.
        gates: ``none``, ``random`` or ``recorded``.
        dtype: of the weights.
        instruction_set: that ran.
        frames: counted.
        macs_per_frame: mean, gate networks included.
        instructions_per_frame: mean, gate networks and index lists included.
        saving_macs: 1 - MACs / MACs of the static network.
        saving_instructions: likewise; None where an output was wrong.
        correct: whether the outputs agreed with the float64 reference.
    """

    site: str
    density: float
    gates: str
    dtype: str
    instruction_set: str
    frames: int
    macs_per_frame: float
    instructions_per_frame: float
    saving_macs: float
    saving_instructions: float | None
    correct: bool


def count_instructions(
    recorded: str | os.PathLike[str] | None = None,
    densities: Sequence[float] = DENSITIES,
    precisions: Sequence[str] = PRECISIONS,
    plan: Plan | None = None,
) -> list[InstructionRow]:
    """Count for the static network in every precision, and for both sites in float32 at every density.

    Args:
        recorded: folder of recorded masks.
        densities: of the gated networks.
        precisions: of the static network; the first one must be ``"float32"``.
        plan: geometry; the default one's.

    Raises:
        RuntimeError: valgrind, a compiler or the built source tree is missing, or a run failed.
    """
    plan = Plan(recorded=recorded, config=(plan or Plan()).config)
    if shutil.which("valgrind") is None:
        raise RuntimeError("counting instructions needs valgrind (got none); on Debian: apt install valgrind")
    with tempfile.TemporaryDirectory() as folder:
        driver = build_driver(Path(folder))
        static = synthetic_workload(plan.config, 1, _FRAMES)
        cases = [(static, dtype) for dtype in precisions]
        cases += [(work, "float32") for work in gated_works(plan, 1, _FRAMES, densities, [])]
        counted = [_count(driver, Path(folder), work, dtype) for work, dtype in cases]
    base = counted[0]
    rows = []
    for (work, dtype), (instructions, isa, correct) in zip(cases, counted):
        saving = 1.0 - instructions / base[0] if correct and base[2] else None
        rows.append(
            InstructionRow(
                work.config.site,
                work.density,
                work.source,
                dtype,
                isa,
                _FRAMES,
                work.macs_per_frame,
                instructions,
                1.0 - work.macs_per_frame / static.macs_per_frame,
                saving,
                correct,
            )
        )
    return rows


def _count(driver: Path, folder: Path, work: Workload, dtype: str) -> tuple[float, str, bool]:
    """Instructions per frame, instruction set, and whether the masks were right."""
    write_case(folder, work, dtype)
    # Only what one call of the engine does is counted.
    callgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]
    check, result = run_masks(driver, folder, work, dtype, [*callgrind, "--toggle-collect=dyncp::step_frames(*"])
    found = _COLLECTED.search(result.stderr)
    if found is None:
        raise RuntimeError(f"callgrind must report a count (got {result.stderr[-500:]!r})")
    return int(found[1]) / work.frames, result.stdout.strip(), check.correct


def instruction_table(rows: Sequence[InstructionRow]) -> Any:
    """The rows as a rich table; no saving is shown for a wrong output."""
    headings = ("site", "kept", "gates", "dtype", "set", "kMAC", "instructions", "MACs saved", "instructions saved")
    table = require("rich.table", "cli").Table(*headings, title=f"instructions per frame, {_FRAMES} frames, callgrind")
    for column in table.columns[5:]:
        column.justify = "right"
    for row in rows:
        saving = "WRONG" if row.saving_instructions is None else f"{row.saving_instructions:.1%}"
        cells = (row.site, f"{row.density:.0%}", row.gates, row.dtype, row.instruction_set)
        macs, instructions = f"{row.macs_per_frame / 1e3:,.1f}", f"{row.instructions_per_frame:,.0f}"
        table.add_row(*cells, macs, instructions, f"{row.saving_macs:.1%}", saving)
    return table


def write_instructions(rows: Sequence[InstructionRow], path: str | os.PathLike[str]) -> list[Path]:
    """Write ``path`` with suffix ``.json`` (machine header and rows) and ``.csv`` (rows)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    json_path, csv_path = path.with_suffix(".json"), path.with_suffix(".csv")
    document = {"machine": machine_header(), "rows": [asdict(row) for row in rows]}
    json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    with csv_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(InstructionRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return [json_path, csv_path]
