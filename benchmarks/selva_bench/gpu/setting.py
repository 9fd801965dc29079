"""What is checked, and the sides of the benchmark that the parts run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from selva_bench.inputs import EXAMPLE
from selva_bench.options import BenchError, BenchOptions
from selva_bench.worker import endless_prompts, one_line
from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_runtime.backends import choose
from selva_runtime.backends.gpu.device_array import MemoryPool
from selva_runtime.backends.gpu.executor import DeviceExecutor
from selva_runtime.backends.gpu.host_device import HostDevice
from selva_runtime.backends.gpu.onnx_graphs import OnnxGraphs
from selva_runtime.session import Session

STEMS = 4
Emit = Callable[[str, Any], None]
"""Reports a row; a later row of the same name replaces it."""


class UnavailableError(BenchError):
    """A part that cannot run here; the message says what is missing."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is checked."""

    device: str
    """"cuda", or "cpu" for a dry run."""
    preset: str
    bundles: dict[str, Path]
    """Precision → folder of the bundle."""
    is_given: bool
    """Whether the user gave the bundles. Otherwise they are exported."""
    duration_s: float
    steps: int
    rounds: int
    threads: int
    video: Path = EXAMPLE

    def options(self, precision: str | None) -> BenchOptions:
        """The options of a side: on the bundle of this precision, or without one."""
        return BenchOptions(
            bundle=None if precision is None else self.bundles[precision],
            preset=self.preset if precision is None else None,
            random_weights=precision is None,
            precision=None,
            cache=Path(),
            backends=("auto",),
            baselines=(),
            stems=(1, STEMS),
            duration_s=self.duration_s,
            video=self.video,
            steps=self.steps,
            rounds=self.rounds,
            threads=self.threads,
            keep_text_towers=True,
            out=Path(),
        )


def tried(emit: Emit, name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Reports what `work` returns, or its error. Other rows follow in both cases."""
    start_s = perf_counter()
    try:
        found = {"ok": True, **work()}
    except Exception as error:
        found = {"ok": False, "error": one_line(error)}
    emit(name, {**found, "seconds": perf_counter() - start_s})


@contextmanager
def _stand_in(setting: Setting) -> Iterator[None]:
    """In a dry run, lets the backend `cuda` run in ordinary memory, on ONNX Runtime's CPU provider."""
    before = choose.MAKERS["cuda"]

    def make(bundle: Bundle, _settings: Any, reason: str) -> DeviceExecutor:
        device = HostDevice()
        graphs = OnnxGraphs(bundle, device, threads=setting.threads)
        return DeviceExecutor(bundle, MemoryPool(device), graphs, backend="cuda", reason=f"{reason}; no GPU: a dry run")

    if setting.device != "cuda":
        choose.MAKERS["cuda"] = make
    try:
        yield
    finally:
        choose.MAKERS["cuda"] = before


@contextmanager
def _missing_is_unavailable() -> Iterator[None]:
    """A backend that cannot be opened is not a failure of the check; running out of memory is."""
    try:
        yield
    except DeviceMemoryError:
        raise
    except BackendError as error:
        raise UnavailableError(str(error)) from error


def open_session(setting: Setting, bundle: Path, backend: str) -> Session:
    """A session on this backend.

    Raises:
        UnavailableError: the backend cannot run here.
    """
    with _missing_is_unavailable(), _stand_in(setting):
        return Session(bundle, backend=backend, threads=setting.threads, cache="none")


def open_side(setting: Setting, label: str) -> Any:
    """A side of the benchmark in this process."""
    if label.startswith("torch"):
        from selva_bench.torch_side import TorchSide

        return TorchSide(f"{label}-{setting.device}", setting.options(None), endless_prompts())
    from selva_bench.runtime_side import RuntimeSide

    with _missing_is_unavailable(), _stand_in(setting):
        return RuntimeSide(label, setting.options("fp16"), endless_prompts())
