"""The parts of the check. Each runs in a process of its own and reports row by row, so that a crash costs only itself.

The parent gets one line of JSON for each row, [name, value], then {"done": true}, {"unavailable": reason} or
{"error": message}. A value with "ok": false is a failure.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from selva_bench import machine
from selva_bench.gpu.device_checks import CHECKS, Make
from selva_bench.gpu.hardware import describe, floor
from selva_bench.gpu.kernels import profile_kernels
from selva_bench.gpu.parity import parity
from selva_bench.gpu.probe import CHECKOUT, probe
from selva_bench.gpu.setting import Emit, Setting, UnavailableError, open_side, tried
from selva_bench.inputs import export_if_outdated
from selva_bench.options import BenchError
from selva_bench.statistics import summarise_rounds
from selva_bench.worker import one_line
from selva_bundle.bundle import Bundle
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.host_device import HostDevice

_DRY_RUN_BYTES = 2**31


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part, and the names of what it needs; `probe` says why each of them is missing."""

    run: Callable[[Setting, Emit], None]
    needs: tuple[str, ...] = ("gpu",)


def _make(setting: Setting) -> Make:
    return CudaDevice if setting.device == "cuda" else lambda: HostDevice(_DRY_RUN_BYTES)


def _device_class(setting: Setting, emit: Emit) -> None:
    for check in CHECKS:
        tried(emit, check.__name__, lambda check=check: check(_make(setting)) or {})  # type: ignore[misc]


def _tests(_setting: Setting, emit: Emit) -> None:
    """The tests that need a GPU: a row for each as soon as it ends, so a crash shows which one was running."""
    import pytest

    class Rows:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            emit(nodeid, {"ok": False, "error": "it never ended"})

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                emit(report.nodeid, {"ok": False, "error": _last_line(report.longreprtext)})
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
                emit(report.nodeid, {"ok": True, "skipped": _last_line(reason).removeprefix("Skipped: ")})
            elif report.when == "call":
                emit(report.nodeid, {"ok": True, "seconds": report.duration})

        def pytest_collectreport(self, report: pytest.CollectReport) -> None:
            if report.failed:
                emit(report.nodeid, {"ok": False, "error": _last_line(report.longreprtext)})

    os.chdir(CHECKOUT)
    files = [str(path) for path in sorted(Path("tests").glob("test_*.py")) if "mark.gpu" in path.read_text("utf-8")]
    code = pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *files], plugins=[Rows()])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise BenchError(f"pytest ended with {pytest.ExitCode(code).name}")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _bundle(setting: Setting, emit: Emit, precision: str) -> None:
    folder = setting.bundles[precision]
    if not setting.is_given:
        export_if_outdated(folder, setting.preset, precision, quiet=False)
    emit("bytes", sum(file.bytes for file in Bundle.open(folder).manifest.files.values()))


def _engines(setting: Setting, emit: Emit, precision: str) -> None:
    """Engines for this GPU from each library that can build them."""
    engines = import_module("selva_engines")
    built = []
    for target in engines.installed_targets():
        asked = (CudaDevice().capability,) if target == "tensorrt-rtx" else ()
        request = engines.BuildRequest(bundle=setting.bundles[precision], target=target, capabilities=asked)
        start_s = perf_counter()
        try:
            engines.build_engines(request, lambda line: print(line, file=sys.stderr))
        except engines.EngineError as error:  # such as RTX on a GPU that it does not know
            emit(target, {"refused": one_line(error)})
            continue
        emit(target, {"seconds": perf_counter() - start_s})
        built.append(target)
    if not built:
        raise UnavailableError("no library could build engines for this GPU")


def _latency(setting: Setting, emit: Emit, label: str) -> None:
    """Stages and totals: of the first round, which is cold, and of the rounds after it."""
    start_s = perf_counter()
    side = open_side(setting, label)
    emit("facts", {**side.facts, "open_s": perf_counter() - start_s})
    cold = side.round()
    emit("cold", {kind: {name: samples[0] for name, samples in cold[kind].items()} for kind in ("stages", "totals")})
    side.warm_up()
    rounds: list[dict[str, Any]] = []
    for _ in range(setting.rounds):
        rounds.append(side.round())
        found = {kind: summarise_rounds(rounds, kind) for kind in ("stages", "totals")}
        emit("warm", {kind: {name: asdict(each) for name, each in found[kind].items()} for kind in found})
    emit("gpu_used_bytes", machine.gpu_used_bytes())


def _parts() -> Iterator[tuple[str, Part]]:
    """The parts in the order in which they run: what tells most first."""
    runtimes = {"cuda": "onnxruntime", "tensorrt": "engines"}
    yield "device", Part(run=describe)
    yield "device-class", Part(run=_device_class, needs=("gpu", "cuda-python"))
    yield "floor", Part(run=floor)
    yield "latency:torch", Part(run=partial(_latency, label="torch"), needs=("gpu", "torch"))
    for precision in ("fp32", "fp16"):
        yield f"bundle:{precision}", Part(run=partial(_bundle, precision=precision), needs=("gpu", precision))
    yield "tests", Part(run=_tests, needs=("gpu", "cuda-python", "onnxruntime", "checkout"))
    for backend, library in runtimes.items():
        needs: tuple[str, ...] = ("gpu", "cuda-python", library)
        for precision in ("fp16", "fp32"):
            if library == "engines":
                build = partial(_engines, precision=precision)
                yield f"engines:{precision}", Part(run=build, needs=(*needs, precision))
            compare = partial(parity, backend=backend, precision=precision)
            yield f"parity:{backend}-{precision}", Part(run=compare, needs=(*needs, precision))
        yield f"latency:{backend}", Part(run=partial(_latency, label=backend), needs=(*needs, "fp16"))
    for label, more in (("torch-cuda-graphs", "cuda-graphs"), ("torch-max-autotune", "triton")):
        yield f"latency:{label}", Part(run=partial(_latency, label=label), needs=("gpu", "torch", more))
    yield "profile:torch", Part(run=partial(profile_kernels, label="torch"), needs=("gpu", "torch"))
    for backend, library in runtimes.items():
        needs = ("gpu", "cuda-python", "torch", library, "fp16")
        yield f"profile:{backend}", Part(run=partial(profile_kernels, label=backend), needs=needs)


PARTS = dict(_parts())
PROBE = "probe"


def main() -> None:
    """Runs one part and reports on stdout. Output of libraries goes to stderr."""
    name, packed = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary folders are removed
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: Any) -> None:
        print(json.dumps(message, allow_nan=False), file=answers, flush=True)

    part = Part(run=probe, needs=()) if name == PROBE else PARTS[name]
    try:
        part.run(pickle.loads(bytes.fromhex(packed)), lambda row, value: say([row, value]))
        say({"done": True})
    except UnavailableError as error:
        say({"unavailable": str(error)})
    except Exception as error:
        say({"error": one_line(error)})
        raise
