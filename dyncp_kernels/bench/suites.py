"""What is measured: suites of cases, each run in one process with its engines taking turns."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dyncp_kernels.bench.engine_driver import build_driver, reason_for_no_driver, run_masks, run_times, write_case
from dyncp_kernels.bench.engines import ENGINES, Engine, Run
from dyncp_kernels.bench.engines.cold_caches import ColdCaches
from dyncp_kernels.bench.engines.dyncp import EnhancerStream, HopStream, Stream
from dyncp_kernels.bench.machine import cache_bytes, machine_header, read_microseconds
from dyncp_kernels.bench.masks import Masks, find_recorded, random_masks, read_biases, read_recorded
from dyncp_kernels.bench.measure import Check, Timing, check_offline, check_stream, measure
from dyncp_kernels.bench.narrower import dense_config, width_of_equal_macs, width_of_equal_time
from dyncp_kernels.bench.row import Results, Row, path_of, with_savings
from dyncp_kernels.bench.workload import Workload, hop_workload, shipped_workload, synthetic_workload
from dyncp_kernels.engine import PRECISIONS, PackedModel
from dyncp_kernels.evaluation.dynamism import DynamismMeter
from dyncp_kernels.nn.config import ConvFSENetConfig
from dyncp_kernels.nn.default_models import pruned_models

__all__ = ["DENSITIES", "SUITES", "Case", "Plan", "gated_works", "run_cases", "run_suites"]

DENSITIES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_MAIN_DENSITY = 0.25
_SITES = ("output", "hidden")
_CROSSOVERS = {"output": "out_crossover", "hidden": "hidden_crossover"}
_BASELINE = "dyncp static"
_GATED = "dyncp gated"
_CLIPS = ((1, 500), (16, 250))
_STREAM_FRAMES = 500
_CHUNKS = (2, 4, 8)
_STREAMS = (4, 16, 64)
_FEW_FRAMES = 100
_CALIBRATION_SHARE = 0.25
_MANY_FRAMES = 1000
_MAIN_DTYPES = ("float32", "bfloat16", "int8")

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        seconds: of measuring, per suite and shape.
        threads: for every engine.
        quick: leave out what takes long to prepare or run: torch.compile, the batch of 16 clips, most densities.
        recorded: folder of recorded masks, SITE_PERCENT.npz; None or an empty folder leaves those rows out.
        config: geometry.
        stream_frames: different frames in a stream.
        clips: (batch, frames) of the offline suite.
        other_bytes: read between the calls of the cold suites; None for three times the largest cache.
    """

    seconds: float = 20.0
    threads: int = 1
    quick: bool = False
    recorded: str | os.PathLike[str] | None = None
    config: ConvFSENetConfig = field(default_factory=ConvFSENetConfig)
    stream_frames: int = _STREAM_FRAMES
    clips: Sequence[tuple[int, int]] = _CLIPS
    other_bytes: int | None = None

    @property
    def densities(self) -> tuple[float, ...]:
        """Densities of the gated cases."""
        return (_MAIN_DENSITY, 1.0) if self.quick else DENSITIES


@dataclass(frozen=True)
class Case:
    """One row to be: an engine on a workload.

    Attributes:
        suite: name of the suite.
        engine: name for the row.
        work: the workload.
        make: prepares the engine.
        dtype: of the weights.
        offline: whole clips a call, instead of frames.
        frames: of a call in a stream.
        is_slow: whether what comes before each call takes long, so that there are fewer.
    """

    suite: str
    engine: str
    work: Workload
    make: Callable[[], Run]
    dtype: str = "float32"
    offline: bool = False
    frames: int = 1
    is_slow: bool = False


def run_suites(names: Sequence[str], plan: Plan, notice: Notice = lambda text: None) -> Results:
    """Measure suites, names of :data:`SUITES`.

    Args:
        names: in order.
        plan: how much.
        notice: called with each stage.

    Raises:
        ValueError: no such suite.
    """
    rows: list[Row] = []
    notes: list[str] = []
    threads = torch.get_num_threads()
    try:
        for name in names:
            if name not in SUITES:
                raise ValueError(f"run_suites: suites must be of {list(SUITES)} (got {name!r})")
            SUITES[name](plan, rows, notes, notice)
    finally:
        torch.set_num_threads(threads)
    return Results(machine_header(), rows, list(dict.fromkeys(notes)))


def run_cases(cases: Sequence[Case], plan: Plan, seconds: float, notice: Notice = lambda text: None) -> list[Row]:
    """Prepare, check and time the cases together; a row per case, with savings against ``dyncp static``."""
    torch.set_num_threads(plan.threads)
    runs: dict[str, Run] = {}
    checks: dict[str, Check] = {}
    for index, case in enumerate(cases):
        notice(f"{case.suite}: preparing {case.engine} ({index + 1} of {len(cases)})")
        run = runs[str(index)] = case.make()
        checks[str(index)] = (
            check_offline(run, case.work, case.dtype)
            if case.offline
            else check_stream(run, case.work, case.dtype, frames_per_call=case.frames)
        )
    offline = cases[0].offline
    notice(f"{cases[0].suite}: measuring {len(cases)} engines for {seconds:.0f} s")
    # A call on many frames is long enough to hide that its data must come back into the caches.
    many = offline and cases[0].work.batch * cases[0].work.frames > _MANY_FRAMES
    calls, settle = (1, 0) if many else (3, 1) if offline else (8, 2) if cases[0].is_slow else (40, 10)
    frames = {str(i): case.work.batch * (case.work.frames if offline else case.frames) for i, case in enumerate(cases)}
    cycle = 1 if offline else min(case.work.frames // case.frames for case in cases)
    timings = measure(runs, frames, cycle=cycle, calls=calls, settle=settle, seconds=seconds, least_rounds=7)
    return _rows(cases, [checks[name] for name in runs], [timings[name] for name in runs], plan)


def _rows(cases: Sequence[Case], checks: Sequence[Check], timings: Sequence[Timing], plan: Plan) -> list[Row]:
    rows = [
        Row(
            suite=case.suite,
            engine=case.engine,
            site=case.work.config.site,
            density=case.work.density,
            gates=case.work.source,
            dtype=case.dtype,
            threads=plan.threads,
            batch=case.work.batch,
            frames=case.work.frames if case.offline else case.frames,
            macs_per_frame=case.work.macs_per_frame,
            p50_us_per_frame=timing.p50,
            p99_us_per_frame=timing.p99,
            saving_macs=None,
            saving_time=None,
            realised=None,
            correct=check.correct,
            max_error=check.max_error,
            calls=timing.calls,
        )
        for case, check, timing in zip(cases, checks, timings)
    ]
    return _savings(rows)


def _savings(rows: Sequence[Row]) -> list[Row]:
    """Savings of this package's rows against its static network in the same dtype, called in the same way."""
    baselines = {(row.dtype, path_of(row)): row for row in rows if row.engine.startswith(_BASELINE)}
    saved = []
    for row in rows:
        baseline = baselines.get((row.dtype, path_of(row)))
        is_own = row.engine.startswith(("dyncp", "narrower"))
        saved.append(with_savings(row, baseline) if is_own and baseline is not None else row)
    return saved


def gated_works(plan: Plan, batch: int, frames: int, densities: Sequence[float], notes: list[str]) -> list[Workload]:
    """Workloads of both sites with random and, where there are any, recorded gates."""
    recorded = {} if plan.recorded is None else find_recorded(plan.recorded)
    works = []
    for site in _SITES:
        config = ConvFSENetConfig.from_dict({**plan.config.to_dict(), "site": site})
        channels = config.channels if site == "output" else config.hidden

        make = partial(synthetic_workload, config, batch, frames)
        for density in densities:
            masks = random_masks(config.blocks, channels, frames, density)
            works.append(make(masks=masks, density=density, source="random"))
            if path := recorded.get((site, density)):
                masks = read_recorded(path, frames)
                works.append(make(masks=masks, biases=read_biases(path), density=density, source="recorded"))
                notes.append(_described(path.name, masks))
            elif density not in (0.0, 1.0):
                notes.append(f"no recorded masks for {site} at {density:.0%}: {_where(plan.recorded, site, density)}")
    return works


def _described(name: str, masks: Masks) -> str:
    meter = DynamismMeter()
    meter.add(list(masks))
    found = meter.overall()
    return (
        f"recorded masks {name}, {masks.shape[2]} frames: {found.usage:.1%} kept, {found.flips:.2%} of the gates flip "
        f"per frame, {found.union[16]:.0%} are kept at least once in 16 frames"
    )


def _where(folder: str | os.PathLike[str] | None, site: str, density: float) -> str:
    name = f"{site}_{round(100 * density)}.npz"
    return f"no folder given, {name} would be in it" if folder is None else f"no {Path(folder) / name}"


def _case(suite: str, engine: Engine, work: Workload, plan: Plan, offline: bool) -> Case | None:
    make = engine.offline if offline else engine.stream
    return None if make is None else Case(suite, engine.name, work, partial(make, work, plan.threads), offline=offline)


def _available(engine: Engine, plan: Plan, notes: list[str]) -> bool:
    missing = [module for module in engine.modules if importlib.util.find_spec(module) is None]
    if missing:
        notes.append(f"{engine.name} left out: pip install 'dyncp_kernels[bench]' (got no {', '.join(missing)})")
    if engine.slow_start and plan.quick:
        notes.append(f"{engine.name} left out of a quick run: it compiles for a minute")
    return not missing and not (engine.slow_start and plan.quick)


def _engine_suite(
    suite: str, batch: int, frames: int, offline: bool, plan: Plan, rows: list[Row], notes: list[str], notice: Notice
) -> None:
    """All engines on the static network, gated ones at all densities, and narrower dense networks."""
    static = synthetic_workload(plan.config, batch, frames)
    gated = gated_works(plan, batch, frames, plan.densities, notes)
    engines = [engine for engine in ENGINES.values() if _available(engine, plan, notes)]
    cases = [_case(suite, engine, static, plan, offline) for engine in engines if not engine.gated]
    for work in gated:
        # What multiplies by the mask takes the same time at every density.
        others = engines if work.density == _MAIN_DENSITY else [ENGINES[_GATED]]
        cases += [_case(suite, engine, work, plan, offline) for engine in others if engine.gated]
    found = [case for case in cases if case is not None]
    found += _narrower_cases(suite, [work for work in gated if work.density == _MAIN_DENSITY], plan, offline, notice)
    rows += run_cases(found, plan, plan.seconds, notice)


def _narrower_cases(suite: str, works: Sequence[Workload], plan: Plan, offline: bool, notice: Notice) -> list[Case]:
    """Dense networks with as many MACs, and as much measured time, as each gated workload."""
    engine = ENGINES[_BASELINE]

    def dense(hidden: int) -> Workload:
        return synthetic_workload(dense_config(plan.config, hidden), works[0].batch, works[0].frames)

    widths = sorted({max(8, plan.config.hidden * part // 8) for part in range(1, 9)})
    trials = [_case(suite, engine, dense(width), plan, offline) for width in widths]
    trials += [_case(suite, ENGINES[_GATED], work, plan, offline) for work in works]
    notice(f"{suite}: looking for dense networks of equal time")
    measured = run_cases([case for case in trials if case is not None], plan, _CALIBRATION_SHARE * plan.seconds)
    times = {width: row.p50_us_per_frame for width, row in zip(widths, measured)}
    cases = []
    for work, row in zip(works, measured[len(widths) :]):
        for what, width in (
            ("MACs", width_of_equal_macs(plan.config, work.macs_per_frame)),
            ("time", width_of_equal_time(times, row.p50_us_per_frame)),
        ):
            case = _case(suite, engine, dense(width), plan, offline)
            assert case is not None
            name = f"narrower {width}, {what} of {_named(work)}"
            cases.append(Case(suite, name, case.work, case.make, offline=offline))
    return cases


def _own_stream(suite: str, work: Workload, plan: Plan, dtype: str = "float32", name: str | None = None) -> Case:
    """One frame a call of the streaming engine."""
    name = name or (_BASELINE if work.source == "none" else _GATED)
    return Case(suite, name, work, partial(Stream, work, plan.threads, dtype), dtype)


def _twin(suite: str, work: Workload, plan: Plan, dtype: str = "float32") -> Case:
    """The dense network with as many MACs as a gated stream."""
    width = width_of_equal_macs(plan.config, work.macs_per_frame)
    dense = synthetic_workload(dense_config(plan.config, width), work.batch, work.frames)
    return _own_stream(suite, dense, plan, dtype, f"narrower {width}, MACs of {_named(work)}")


def _named(work: Workload) -> str:
    return f"{work.config.site} {work.density:.0%} {work.source}"


def _streaming(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    torch.set_num_threads(plan.threads)
    for work in gated_works(plan, 1, 1, (_MAIN_DENSITY,), []):
        if work.source == "random":
            site = work.config.site
            crossover = Stream(work, plan.threads).engine.info[_CROSSOVERS[site]]
            notes.append(
                f"dyncp gated reads every row of the {site} site from a density of {crossover:.2f} on (measured)"
            )
    _engine_suite("streaming", 1, plan.stream_frames, False, plan, rows, notes, notice)


def _offline(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    for batch, frames in plan.clips[:1] if plan.quick else plan.clips:
        _engine_suite("offline", batch, frames, True, plan, rows, notes, notice)


def _precision(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    """Narrower weights, streaming; other engines on the static network in what they offer of them."""
    works = [synthetic_workload(plan.config, 1, plan.stream_frames)]
    works += gated_works(plan, 1, plan.stream_frames, (_MAIN_DENSITY,), notes)
    for dtype in PRECISIONS:
        size = PackedModel(works[0].network, dtype).tensor.numel()
        notes.append(
            f"a dot product over the {size / 2**20:.2f} MB of the static network in {dtype} takes "
            f"{read_microseconds(size):.1f} us (torch, one thread)"
        )
    cases = [_own_stream("precision", work, plan, dtype) for dtype in PRECISIONS for work in works]
    cases += [_twin("precision", work, plan, dtype) for dtype in PRECISIONS for work in works[1:]]
    for engine in ENGINES.values():
        if engine.reduced is not None and _available(engine, plan, notes):
            cases += [
                Case("precision", engine.name, works[0], partial(make, works[0], plan.threads), dtype)
                for dtype, make in engine.reduced().items()
            ]
    rows += run_cases(cases, plan, plan.seconds / 2, notice)


def _chunks(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    """Some frames of a stream a call: the static network in every engine, and the shipped gated ones on the demo clip.

    Gates cannot be placed within a call, so here they are what trained networks decide.
    """
    torch.set_num_threads(plan.threads)
    static = synthetic_workload(plan.config, 1, plan.stream_frames)
    gated = _shipped_works("chunks", plan, notes)
    for frames in _CHUNKS[-1:] if plan.quick else _CHUNKS:
        cases = [
            Case("chunks", engine.name, work, partial(engine.chunks, work, plan.threads, frames), frames=frames)
            for engine in ENGINES.values()
            if engine.chunks is not None and _available(engine, plan, notes)
            for work in (gated if engine.gated else [static])
        ]
        rows += run_cases(cases, plan, plan.seconds / 4, notice)


def _streams(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    """A frame of each of some streams a call, likewise."""
    torch.set_num_threads(plan.threads)
    frames = min(plan.stream_frames, _FEW_FRAMES)
    for streams in _STREAMS[:1] if plan.quick else _STREAMS:
        static = synthetic_workload(plan.config, streams, frames)
        gated = _shipped_works("streams", plan, notes, streams, frames)
        cases = [
            Case("streams", engine.name, work, partial(engine.streams, work, plan.threads))
            for engine in ENGINES.values()
            if engine.streams is not None and _available(engine, plan, notes)
            for work in (gated if engine.gated else [static])
        ]
        rows += run_cases(cases, plan, plan.seconds / 4, notice)


def _shipped_works(
    suite: str, plan: Plan, notes: list[str], streams: int = 1, frames: int | None = None
) -> list[Workload]:
    if plan.config != ConvFSENetConfig():
        notes.append(f"{suite}: gated rows left out, the shipped networks are of another geometry")
        return []
    works = [shipped_workload(name, streams, frames) for name in pruned_models()]
    for work in works:
        where = "the demo clip" if streams == 1 else f"{streams} parts of the demo clip"
        notes.append(f"{suite}: the shipped network of the {work.config.site} site keeps {work.density:.1%} on {where}")
    return works


def _other_bytes(plan: Plan) -> int:
    return 3 * cache_bytes() if plan.other_bytes is None else plan.other_bytes


def _cold(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    """One frame a call, with other data in the caches, as between the frames of a live stream."""
    torch.set_num_threads(plan.threads)
    other = np.ones(_other_bytes(plan) // 8, np.int64)
    notes.append(f"cold: {other.nbytes / 2**20:.0f} MB of other data were read before each call")
    frames = min(plan.stream_frames, _FEW_FRAMES)
    static = synthetic_workload(plan.config, 1, frames)
    gated = gated_works(plan, 1, frames, (_MAIN_DENSITY,), notes)
    engines = [engine for engine in ENGINES.values() if _available(engine, plan, notes)]
    found = [_case("cold", engine, static, plan, False) for engine in engines if not engine.gated]
    found += [_case("cold", ENGINES[_GATED], work, plan, False) for work in gated]
    cases = [case for case in found if case is not None]
    cases += [_twin("cold", work, plan) for work in gated]
    cases += [_own_stream("cold", work, plan, dtype) for dtype in _MAIN_DTYPES[1:] for work in (static, *gated)]
    rows += run_cases([_with_cold_caches(case, other) for case in cases], plan, plan.seconds, notice)


def _with_cold_caches(case: Case, other: NDArray[np.int64]) -> Case:
    return replace(case, make=lambda: ColdCaches(case.make(), other), is_slow=True)


def _without_python(
    suite: str, other_bytes: int, plan: Plan, rows: list[Row], notes: list[str], notice: Notice
) -> None:
    """The streaming engine in a program of its own, as on a device; a frame a call."""
    if reason := reason_for_no_driver():
        notes.append(f"{suite} left out: {reason}")
        return
    if plan.threads > 1:
        notes.append(f"{suite} left out: a stream takes one thread")
        return
    works = [synthetic_workload(plan.config, 1, plan.stream_frames)]
    works += gated_works(plan, 1, plan.stream_frames, (_MAIN_DENSITY,), notes)
    cases = []
    for dtype in _MAIN_DTYPES:
        cases += [_own_stream(suite, work, plan, dtype) for work in works]
        cases += [_twin(suite, work, plan, dtype) for work in works[1:]]
    with tempfile.TemporaryDirectory() as root:
        notice(f"{suite}: preparing {len(cases)} networks")
        driver = build_driver(Path(root))
        folders = [Path(root) / str(index) for index in range(len(cases))]
        for folder, case in zip(folders, cases):
            write_case(folder, case.work, case.dtype)
        checks = [run_masks(driver, f, case.work, case.dtype)[0] for f, case in zip(folders, cases)]
        notice(f"{suite}: measuring {len(cases)} networks for {plan.seconds:.0f} s")
        timings = run_times(driver, folders, plan.seconds, other_bytes)
    rows += _rows(cases, checks, timings, plan)


def _native(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    _without_python("native", 0, plan, rows, notes, notice)


def _native_cold(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    _without_python("native_cold", _other_bytes(plan), plan, rows, notes, notice)


def _full_path(plan: Plan, rows: list[Row], notes: list[str], notice: Notice) -> None:
    """Samples in, samples out, by engine and by ``StreamingEnhancer``, beside the network alone on the same frames."""
    works = [synthetic_workload(plan.config, 1, plan.stream_frames)]
    works += gated_works(plan, 1, plan.stream_frames, (_MAIN_DENSITY,), notes)
    cases = []
    for work in map(hop_workload, works):
        alone = Workload(work.network, work.features, work.gates, work.density, work.source)
        cases.append(_own_stream("full_path", alone, plan))
        name = cases[-1].engine
        cases.append(Case("full_path", f"{name}, samples", work, partial(HopStream, work, plan.threads)))
        cases.append(Case("full_path", f"{name}, enhancer", work, partial(EnhancerStream, work, plan.threads)))
    rows += run_cases(cases, plan, plan.seconds / 2, notice)


SUITES: dict[str, Callable[[Plan, list[Row], list[str], Notice], None]] = {
    "streaming": _streaming,
    "precision": _precision,
    "full_path": _full_path,
    "chunks": _chunks,
    "streams": _streams,
    "cold": _cold,
    "native": _native,
    "native_cold": _native_cold,
    "offline": _offline,
}
"""The suites by name."""
