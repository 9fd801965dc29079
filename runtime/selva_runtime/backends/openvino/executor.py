"""OpenVINO on the CPU: the fastest backend on x86, and the only one that can compute in bfloat16 and int8.

It reads the bundle's own ONNX files. Each graph is compiled for the exact sizes of its inputs. Open sizes would cost 4
to 7 % of a run (the conditions would take twice as long). Compiling takes about a second a graph and 5 s for the
decoder, and a session seldom changes a clip's length. Only the number of tokens of a prompt stays open, because it
differs for every prompt. "exact" means float32; by default OpenVINO would use bfloat16 if the hardware has it.

The text towers run on ONNX Runtime, which computes with their mapped files. They are loaded for one short run per
prompt, and OpenVINO would take longer to copy their weights than to use them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from importlib import import_module
from threading import Event
from typing import Any

import numpy as np

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, BundleError
from selva_bundle.manifest import Graph
from selva_bundle.ports import (
    AVERAGE_CONDITIONS,
    CONDITIONS,
    DECODER,
    STEPS,
    TEXT_CLIP,
    TEXT_T5,
    VIDEO_BACKBONE,
    VIDEO_CLIP,
    VIDEO_SELECT,
    Port,
)
from selva_runtime.backends.cores import usable_cores
from selva_runtime.backends.executor import BF16, EXACT, INT8, POLL_S, Array, Tensor, check_cancel
from selva_runtime.backends.mapped import FileBackedArrays, releasing_pages
from selva_runtime.backends.numpy_executor import NumpyExecutor
from selva_runtime.backends.onnx_cpu import OnnxCpuExecutor
from selva_runtime.backends.openvino.activations import has_avx512, separate_activations
from selva_runtime.backends.openvino.cosine import replace_cosines
from selva_runtime.backends.openvino.int8 import SETTINGS as INT8_SETTINGS
from selva_runtime.backends.openvino.int8 import quantize_layers
from selva_runtime.backends.openvino.minimal_filtering import use_minimal_filtering

_OPEN_AXIS = "tokens"
_ON_ONNX_RUNTIME = (TEXT_T5, TEXT_CLIP)
_IN_FLOAT32 = (CONDITIONS, AVERAGE_CONDITIONS)
"""Take 30 ms a prompt, and every step depends on them. OpenVINO 2026.4 crashes when it compiles them for bfloat16."""
_WITH_COSINES = DECODER
_WITH_ACTIVATIONS_APART = (VIDEO_BACKBONE, VIDEO_SELECT)
"""On CPUs without AVX-512. With AVX2's code of oneDNN on another CPU: 5 % of their time; a step is slower by 1 %."""
_WITH_WIDE_FILTERS = {**dict.fromkeys(STEPS, 60), DECODER: 96}
"""Smallest number of tiles for which convolutions are rewritten. A step's weights are read up to 25 times a stem,
the decoder's once. In bfloat16 nothing is rewritten: it would lose precision, and its products are cheaper than the
additions."""
_IN_INT8 = (VIDEO_BACKBONE, VIDEO_SELECT, VIDEO_CLIP, *STEPS)
"""Their linear layers are large. The decoder is made of convolutions, and the conditions take no time."""
_TELEMETRY = "openvino_telemetry"
Sizes = tuple[tuple[int, ...], ...]
"""Shapes of a graph's inputs in the manifest's order. -1 is an open size."""


class OpenVinoExecutor(NumpyExecutor):
    """Runs a bundle's graphs on `threads` CPU threads (None: as many as the process may use), not pinned to cores.

    Raises:
        BackendError: OpenVINO or ONNX Runtime is not installed, or the CPU has no bfloat16 for "bf16", or no AVX-512
            for "int8".
    """

    backend = "openvino"

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, compute_precision: str = EXACT, reason: str = "asked for"
    ) -> None:
        super().__init__(bundle, reason)
        self._onnx_runtime = OnnxCpuExecutor(bundle, threads=threads)
        self._threads = threads or usable_cores()
        self._compute_precision = compute_precision
        self._ov = import_openvino()
        self._core = self._ov.Core()
        if compute_precision == BF16 and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError("this CPU has no bfloat16 arithmetic (AMX or AVX512-BF16); choose the precision exact")
        if compute_precision == INT8 and not self._has_avx512:
            raise BackendError("int8 needs a CPU with AVX-512; choose the precision exact")
        self._models: dict[str, Any] = {}
        self._compiled: dict[str, tuple[Sizes, Any]] = {}

    @cached_property
    def _has_avx512(self) -> bool:
        try:
            return has_avx512(self._ov, self._core)
        except Exception as error:
            raise BackendError(f"OpenVINO does not say what it computes with: {last_line(error)}") from error

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it. The graph is compiled at its first run, for its sizes."""
        if name in _ON_ONNX_RUNTIME:
            self._onnx_runtime.load(name)
        elif name not in self._models:
            self._models[name] = self._read(name)

    def _read(self, name: str) -> Any:
        try:
            with self._bundle.open_graph(name) as source:
                model = self._core.read_model(source)
            if name == _WITH_COSINES:
                replace_cosines(self._ov, model)
            if name in _IN_INT8 and self._compute_precision == INT8:
                quantize_layers(self._ov, model)
            elif name in _WITH_ACTIVATIONS_APART and not self._has_avx512:
                separate_activations(self._ov, model)
        except BundleError:
            raise
        except Exception as error:
            raise BackendError(f"OpenVINO cannot load {self._bundle.onnx_path(name)}: {last_line(error)}") from error
        return model

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """Run graph `name` and return its outputs by name. `cancel` stops the run at once or soon."""
        if name in _ON_ONNX_RUNTIME:
            return self._onnx_runtime.run(name, feeds, cancel)
        return super().run(name, feeds, cancel)

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._onnx_runtime.release(name)
        self._compiled.pop(name, None)
        self._models.pop(name, None)

    def _run(self, graph: Graph, feeds: Mapping[str, Array], cancel: Event | None) -> dict[str, Array]:
        request = self._request(graph, tuple(_sizes(port, feeds[port.name]) for port in graph.inputs))
        try:
            for name, values in feeds.items():
                request.set_tensor(name, self._ov.Tensor(values, shared_memory=True))
            self._finish(request, cancel)
            outputs = {port.name: np.array(request.get_tensor(port.name).data) for port in graph.outputs}
        except RuntimeError as error:  # what OpenVINO raises
            raise BackendError(f"OpenVINO failed in graph {graph.name}: {last_line(error)}") from error
        return outputs

    def _finish(self, request: Any, cancel: Event | None) -> None:
        """Run the request in OpenVINO's own threads. On cancel or Ctrl-C, stop it between two of its nodes first."""
        request.start_async()
        try:
            while not request.wait_for(int(POLL_S * 1000)):
                check_cancel(cancel)
        except BaseException:
            request.cancel()
            with suppress(RuntimeError):
                request.wait()
            raise

    def _request(self, graph: Graph, sizes: Sizes) -> Any:
        """Return the inference request for these sizes. Compile the graph unless the last run had the same sizes."""
        known, request = self._compiled.get(graph.name, (None, None))
        if known == sizes:
            return request
        self.load(graph.name)
        self._compiled.pop(graph.name, None)
        for _, other in self._compiled.values():  # compiling needs memory; scratch is made again later
            other.get_compiled_model().release_memory()
        model, kept = self._models[graph.name], FileBackedArrays()
        try:
            model.reshape({port.name: list(shape) for port, shape in zip(graph.inputs, sizes, strict=True)})
            if graph.name in _WITH_WIDE_FILTERS and self._compute_precision != BF16:
                model = model.clone()  # the rewritten model fits only these sizes
                use_minimal_filtering(self._ov, model, tiles=_WITH_WIDE_FILTERS[graph.name], keep=kept.keep)
            with releasing_pages([*(self._bundle.path / file for file in graph.data), *kept.files]):
                compiled = self._core.compile_model(model, "CPU", self._settings(graph.name))
                request = compiled.create_infer_request()
        except Exception as error:
            raise BackendError(f"OpenVINO cannot compile graph {graph.name}: {last_line(error)}") from error
        self._compiled[graph.name] = sizes, request
        return request

    def _settings(self, name: str) -> dict[str, Any]:
        in_bf16 = self._compute_precision == BF16 and name not in _IN_FLOAT32
        return {
            "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the host chooses the cores
            **(INT8_SETTINGS if self._compute_precision == INT8 and name in _IN_INT8 else {}),
        }


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    A plain import sends a report to Intel and leaves an identifier in the user's home folder. Without the telemetry
    package it does neither, so that package is hidden during the import.

    Raises:
        BackendError: OpenVINO is not installed. The message says what to install.
    """
    if keep_away := _TELEMETRY not in sys.modules:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        return import_module("openvino")
    except ImportError as error:
        raise BackendError(
            f"the openvino backend needs OpenVINO: pip install 'selva-deploy[openvino]' ({last_line(error)})"
        ) from error
    finally:
        if keep_away:
            del sys.modules[_TELEMETRY]


def last_line(error: Exception) -> str:
    """Return the last line of an exception's message. OpenVINO's messages begin with locations in its source."""
    lines: Iterable[str] = (line.strip() for line in reversed(str(error).splitlines()))
    return next(filter(None, lines), type(error).__name__)


def _sizes(port: Port, values: Array) -> tuple[int, ...]:
    return tuple(-1 if size == _OPEN_AXIS else real for size, real in zip(port.shape, values.shape, strict=True))
