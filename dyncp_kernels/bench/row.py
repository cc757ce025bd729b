"""The one row that every measurement becomes, and the results file that holds rows under a machine header."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dyncp_kernels._atomic import replacing

__all__ = ["Results", "Row", "read_results", "with_savings", "write_results"]

_FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One engine on one workload.

    Attributes:
        suite: ``streaming`` (one frame a call), ``cold`` (the same with other data in the caches before each call),
            ``precision`` (one frame a call with narrower weights), ``full_path`` (one hop
            of samples a call), ``native`` and ``native_cold`` (as ``streaming`` and ``cold``, in a program without
            Python), ``chunks`` (some frames of a stream a call), ``streams`` (a frame of each of some
            streams a call) or ``offline`` (a batch of clips a call).
        engine: name of the engine; a narrower dense net carries its hidden width, and what takes samples says how.
        site: gated channels: ``none``, ``output`` or ``hidden``.
        density: nominal share of channels kept; the MACs are counted from the masks that were really used.
        gates: where the masks come from: ``none``, ``random`` or ``recorded``.
        dtype: of the weights.
        threads: threads allowed.
        batch: clips or streams a call.
        frames: frames a clip and call.
        macs_per_frame: mean MACs per frame, gate networks included.
        p50_us_per_frame: median microseconds per frame.
        p99_us_per_frame: 99th percentile of the same.
        saving_macs: 1 - MACs / MACs of this package's static network; None for other engines.
        saving_time: 1 - median time / median time of this package's static network in the same run, called in the same
            way; None likewise and wherever a correctness check failed.
        realised: saving_time / saving_macs, where MACs are saved.
        correct: whether the outputs agreed with the float64 reference.
        max_error: largest absolute difference of a mask value from it; None when an output was not finite.
        calls: calls that the times are of; None where a file of an earlier version does not say.
    """

    suite: str
    engine: str
    site: str
    density: float
    gates: str
    dtype: str
    threads: int
    batch: int
    frames: int
    macs_per_frame: float
    p50_us_per_frame: float
    p99_us_per_frame: float
    saving_macs: float | None
    saving_time: float | None
    realised: float | None
    correct: bool
    max_error: float | None
    calls: int | None = None


def path_of(row: Row) -> str:
    """``samples`` or ``enhancer`` for engines of this package that get samples, named after a comma; else nothing."""
    return row.engine.partition(", ")[2] if row.engine.startswith("dyncp") else ""


def with_savings(row: Row, baseline: Row) -> Row:
    """The row with its savings against ``baseline``: MACs always, time only while both are correct."""
    macs = 1.0 - row.macs_per_frame / baseline.macs_per_frame
    time = None
    if row.correct and baseline.correct:
        time = 1.0 - row.p50_us_per_frame / baseline.p50_us_per_frame
    realised = time / macs if time is not None and macs > 0 else None
    return Row(**{**asdict(row), "saving_macs": macs, "saving_time": time, "realised": realised})


@dataclass(frozen=True)
class Results:
    """A run: what it ran on, its rows, and notes on what was left out and which masks were used."""

    machine: dict[str, Any]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def write_results(results: Results, path: str | os.PathLike[str]) -> list[Path]:
    """Write ``path`` with suffix ``.json`` (everything) and ``.csv`` (the rows); each appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [item.name for item in fields(Row)]
    document = {"format": _FORMAT, "machine": results.machine, "notes": results.notes}
    document["rows"] = [asdict(row) for row in results.rows]
    json_path, csv_path = path.with_suffix(".json"), path.with_suffix(".csv")
    with replacing(json_path) as part:
        part.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with replacing(csv_path) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in results.rows)
    return [json_path, csv_path]


def read_results(path: str | os.PathLike[str]) -> Results:
    """Read the JSON that :func:`write_results` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it does not hold rows of this schema.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError(f"format {document['format']}")
        rows: Sequence[dict[str, Any]] = document["rows"]
        return Results(dict(document["machine"]), [Row(**row) for row in rows], list(document["notes"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: results must be written by `dyncp bench` (got: {error})") from None
