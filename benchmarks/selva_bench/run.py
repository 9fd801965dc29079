"""A benchmark from request to results; the command is a thin layer over `run_bench`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selva_bench.bundles import random_bundle
from selva_bench.errors import BenchError
from selva_bench.job import BF16_BACKENDS, RUNTIME, SideJob
from selva_bench.measure import AUTO, BASELINES, Plan, measure
from selva_bench.report import report
from selva_bench.results import save
from selva_bench.table import table
from selva_bundle.bundle import Bundle
from selva_runtime.backends.choose import BACKENDS
from selva_runtime.backends.cores import usable_cores
from selva_runtime.backends.executor import EXACT
from selva_runtime.request import check_span

MAX_STEMS = 64
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What the user asked for, checked when created.

    Raises:
        BenchError: the request cannot be met.
    """

    bundle: Path | None
    preset: str | None
    random_weights: bool
    precision: str | None
    cache: Path
    backends: tuple[str, ...]
    baselines: tuple[str, ...]
    stems: tuple[str, ...]
    duration_s: float
    video: Path | None
    steps: int
    rounds: int
    threads: int | None
    keep_text_towers: bool
    out: Path
    quiet: bool = False

    def __post_init__(self) -> None:
        if (self.bundle is None) == (self.preset is None):
            raise BenchError("give a BUNDLE, or --preset with --random-weights to have one exported")
        if self.bundle is not None and (self.random_weights or self.precision):
            raise BenchError("--random-weights and --precision are for --preset; a BUNDLE has its own")
        if self.preset is not None and not self.random_weights:
            raise BenchError("--preset needs --random-weights; for real weights export a bundle and give that")
        if unknown := [name for name in self.baselines if name not in BASELINES]:
            raise BenchError(f"no baseline {unknown[0]!r}; choose of {', '.join(BASELINES)}")
        if not self.backends:
            raise BenchError("no backend; name one with --backend, or all")
        if {AUTO, ALL} & {*self.backends} and len(self.backends) > 1:
            raise BenchError("--backend auto and all stand alone; name the backends otherwise")
        if not self.stems or not all(n.isdecimal() and 1 <= int(n) <= MAX_STEMS for n in self.stems):
            raise BenchError(f"--stems is {','.join(self.stems)!r}; give numbers from 1 to {MAX_STEMS}, such as 1,4")


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """The results of a benchmark."""

    document: dict[str, Any]
    table: str
    path: Path
    chart: Path | None


def run_bench(request: BenchRequest, say: Callable[[str], None]) -> BenchResult:
    """Runs the benchmark and saves the results.

    Raises:
        SelvaError: the benchmark, the export or saving the results fails.
    """
    folder = request.bundle
    if folder is None:
        assert request.preset is not None
        folder = random_bundle(request.preset, request.precision or "fp32", request.cache, quiet=request.quiet)
    plan = _plan(request, folder)
    document = report(plan, measure(plan, say))
    path, chart = save(document, request.out)
    say(f"wrote {path}" + (f" and {chart}" if chart else "; no chart: pip install 'selva-deploy[bench]'"))
    return BenchResult(document=document, table=table(document), path=path, chart=chart)


def _plan(request: BenchRequest, folder: Path) -> Plan:
    manifest = Bundle.open(folder).manifest
    rules = manifest.sequence
    check_span(0.0, request.duration_s, rules.min_duration_s, rules.max_duration_s)
    every = ALL in request.backends
    pattern = SideJob(
        label="",
        kind=RUNTIME,
        backend="",
        precision=EXACT,
        compiled=False,
        bundle=str(folder),
        preset=manifest.preset,
        video="",
        duration_s=request.duration_s,
        stems=tuple(sorted({1, *map(int, request.stems)})),
        steps=request.steps,
        guidance=manifest.defaults.guidance,
        threads=request.threads or usable_cores(),
        keep_text_towers=request.keep_text_towers,
        audio="",
    )
    return Plan(
        pattern=pattern,
        backends=(*BACKENDS, *BF16_BACKENDS) if every else request.backends,
        backends_optional=every,
        baselines=request.baselines,
        rounds=request.rounds,
        video=request.video,
    )
