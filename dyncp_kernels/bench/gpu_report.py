"""Where gating saves time on a GPU, from results files alone: ``python -m dyncp_kernels.bench.gpu_report``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "find_results", "main", "page_of", "table_of"]

FORMAT = "dyncp gpu 1"
# A difference below this share of the time counts as none.
MARGIN = 0.03
DENSE = ("eager", "compile", "max-autotune", "triton", "cuda")
OURS = ("triton", "cuda")
COMPILED = ("compile", "max-autotune")

Row = dict[str, Any]


def find_results(folder: Path) -> list[dict[str, Any]]:
    """The results of GPU runs in a folder, by file name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(results, dict) and results.get("format") == FORMAT:
            found.append(results)
    return found


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("op", "dtype", "channels", "hidden", "batch", "frames"))


def _best(rows: list[Row], providers: tuple[str, ...]) -> Row | None:
    """The fastest right row of the given providers, replayed as a graph where that is faster."""
    timed = [row for row in rows if row["provider"] in providers and row["p50_us"] is not None]
    return min(timed, key=lambda row: row["p50_us"], default=None)


def _lines(header: list[str], rows: list[list[str]]) -> str:
    parts = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(parts + ["| " + " | ".join(row) + " |" for row in rows])


def _number(value: float | None) -> str:
    return "wrong" if value is None else f"{value:.1f}"


def table_of(results: dict[str, Any]) -> str:
    """Every row, as a Markdown table."""
    header = ["op", "provider", "launch", "dtype", "channels", "batch x frames", "site", "gates", "kept"]
    header += ["p20 us", "p50 us", "p80 us", "MB", "MMAC", "roofline us", "error"]
    rows = []
    for row in results["rows"]:
        rows.append(
            [
                *(row["op"], row["provider"], row["launch"], row["dtype"], f"{row['channels']}/{row['hidden']}"),
                *(f"{row['batch']} x {row['frames']}", row["site"], row["gates"], f"{100 * row['density']:.0f} %"),
                *(_number(row["p20_us"]), _number(row["p50_us"]), _number(row["p80_us"])),
                *(f"{row['bytes'] / 1e6:.2f}", f"{row['macs'] / 1e6:.1f}", f"{row['roofline_us']:.1f}"),
                "not finite" if row["error"] is None else f"{row['error']:.1e}",
            ]
        )
    return _lines(header, rows)


def _groups(results: dict[str, Any]) -> dict[tuple[Any, ...], list[Row]]:
    """The rows of each op, dtype and size."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in results["rows"]:
        groups.setdefault(_key(row), []).append(row)
    return groups


def _gates(rows: list[Row]) -> dict[tuple[str, str, float], list[Row]]:
    """The gated rows of each site, kind and density."""
    gates: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        if row["site"] != "none":
            gates.setdefault((row["site"], row["gates"], round(row["density"], 3)), []).append(row)
    return dict(sorted(gates.items()))


def _realised(gated: Row, own: Row) -> float | None:
    """Share of the MAC saving that shows as a saving of time, against our own kernels without gates."""
    saving = 1 - gated["macs"] / own["macs"]
    return (1 - gated["p50_us"] / own["p50_us"]) / saving if saving > 0.01 else None


def _map_rows(results: dict[str, Any]) -> list[list[str]]:
    lines = []
    for (op, dtype, channels, hidden, batch, frames), rows in _groups(results).items():
        static = [row for row in rows if row["site"] == "none"]
        dense, own = _best(static, DENSE), _best(static, OURS)
        if dense is None or own is None:
            continue
        for (site, gates, density), same in _gates(rows).items():
            gated = _best(same, OURS)
            if gated is None:
                continue
            change = gated["p50_us"] / dense["p50_us"]
            realised = _realised(gated, own)
            verdict = "saves" if change < 1 - MARGIN else "costs" if change > 1 + MARGIN else "no difference"
            lines.append(
                [
                    *(op, dtype, f"{channels}/{hidden}", f"{batch} x {frames}", site, gates, f"{100 * density:.0f} %"),
                    *(f"{dense['p50_us']:.1f} ({dense['provider']})", f"{gated['p50_us']:.1f} ({gated['provider']})"),
                    f"{gated['p50_us'] / gated['roofline_us']:.1f}",
                    *("" if realised is None else f"{realised:.2f}", verdict),
                ]
            )
    return lines


def _goal_rows(results: dict[str, Any]) -> list[list[str]]:
    """What has to be reached, and where it is not; a goal that nothing was measured for says so."""
    goals: dict[str, list[tuple[bool, str]]] = {
        "static block no slower than torch.compile": [],
        "25 % kept, hidden site, widths from 512, utterance gates: realised share of at least 0.7": [],
        "never more than 5 % slower than our own dense block": [],
        "static block at 128/256, 256 x 250: within 1.5 times its memory roofline": [],
    }
    against_compile, realised_share, against_own, memory = goals.values()
    for (op, dtype, channels, hidden, batch, frames), rows in _groups(results).items():
        if op != "gated_conv":
            continue
        size = f"{dtype} {channels}/{hidden} {batch} x {frames}"
        static = [row for row in rows if row["site"] == "none"]
        own, compiled = _best(static, OURS), _best(static, COMPILED)
        if own is None:
            continue
        if compiled is not None:
            ratio = own["p50_us"] / compiled["p50_us"]
            against_compile.append((ratio <= 1, f"{size}: {ratio:.2f}"))
        if (channels, hidden, batch, frames) == (128, 256, 256, 250):
            ratio = own["p50_us"] / (1e6 * own["bytes"] / results["ceilings"]["bytes"])
            memory.append((ratio <= 1.5, f"{size}: {ratio:.2f}"))
        for (site, gates, density), same in _gates(rows).items():
            gated = _best(same, OURS)
            if gated is None:
                continue
            ratio = gated["p50_us"] / own["p50_us"]
            against_own.append((ratio <= 1.05, f"{size} {site} {gates} {100 * density:.0f} %: {ratio:.2f}"))
            share = _realised(gated, own)
            if (
                channels >= 512
                and (site, gates) == ("hidden", "utterance")
                and 0.2 < density < 0.3
                and share is not None
            ):
                realised_share.append((share >= 0.7, f"{size}: {share:.2f}"))
    lines = []
    for goal, outcomes in goals.items():
        missed = [where for reached, where in outcomes if not reached]
        count = f"{len(outcomes) - len(missed)} of {len(outcomes)}" if outcomes else "not measured"
        lines.append([goal, count, "; ".join(missed)])
    return lines


def page_of(all_results: list[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    parts = ["# Where gating saves time on a GPU", ""]
    parts += ["Generated by `python -m dyncp_kernels.bench.gpu_report` from the results of `make gpu`.", ""]
    if not all_results:
        parts += [
            "Nothing has been measured on a GPU yet, so nothing is claimed here.  `make gpu` on a machine with a CUDA",
            "GPU measures, and this page is then written from its results file.",
            "",
        ]
        return "\n".join(parts)
    header = ["op", "dtype", "channels", "batch x frames", "site", "gates", "kept", "fastest dense, us"]
    header += ["ours gated, us"]
    header += ["times its roofline", "realised share of the MAC saving", "gating"]
    for results in all_results:
        machine = results["machine"]
        parts += [f"## {machine['device']}, {machine['date']}", ""]
        parts += [", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("device", "date")), ""]
        rates = ", ".join(
            f"{name} {rate / 1e12:.1f} Top/s" for name, rate in results["ceilings"].items() if name != "bytes"
        )
        parts += [f"Ceilings measured in the same run: {results['ceilings']['bytes'] / 1e12:.2f} TB/s, {rates}.", ""]
        parts += [
            "The fastest dense time is the best of eager, torch.compile and our own kernels without gates, called or",
            "replayed as a graph; the realised share compares with our own kernels without gates.  All rows, with",
            "their bytes and multiplications, are in the results file.",
            "",
            _lines(header, _map_rows(results)),
            "",
        ]
        parts += ["Goals, with our faster back-end at each size:", ""]
        parts += [_lines(["goal", "reached at", "missed at"], _goal_rows(results)), ""]
        if results.get("notes"):
            parts += ["Notes:", "", *[f"- {note}" for note in results["notes"]], ""]
        wrong = [row for row in results["rows"] if row["p50_us"] is None]
        if wrong:
            parts += [f"{len(wrong)} measurements gave a wrong output and have no time.", ""]
        if results["left_out"]:
            parts += ["Left out:", "", *[f"- {entry}" for entry in results["left_out"]], ""]
    return "\n".join(parts)


def main(arguments: list[str] | None = None) -> int:
    """Write the page from the results in a folder."""
    parser = argparse.ArgumentParser(prog="python -m dyncp_kernels.bench.gpu_report", description=main.__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("benchmarks/results"))
    parser.add_argument("page", type=Path, nargs="?", default=Path("benchmarks/GPU.md"))
    options = parser.parse_args(arguments)
    options.page.write_text(page_of(find_results(options.results)), encoding="utf-8")
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
