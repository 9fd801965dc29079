"""ONNX Runtime on the CPU: the backend that runs everywhere.

onnxruntime is an extra and heavy to import, so it is imported here alone, when a session asks for it. A run goes
through a worker thread, so that Ctrl-C and the caller's cancel event stop a graph that takes many seconds (the
vocoder, a backbone segment) between two of its nodes rather than after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt

from .bundle import Bundle
from .cores import usable_cores
from .errors import BackendError, RequestError
from .executor import Array, Tensor, check_cancel, check_feeds

_POLL_S = 0.05
_HOT = "guided_step"
"""The one graph that runs many times over with the same shapes, and so gains from keeping its memory."""


class OnnxCpuExecutor:
    """Runs a bundle's graphs on `threads` CPU threads (None: as many as the process may use)."""

    backend = "cpu"
    keeps_text_towers = False
    loop = None

    def __init__(self, bundle: Bundle, *, threads: int | None = None, reason: str = "asked for") -> None:
        self.reason = reason
        self.segments_per_batch = self.stems_per_decode = 1
        self.stems_per_batch = 4
        self._bundle = bundle
        self._threads = threads or usable_cores()
        self._ort = import_onnxruntime(self.backend)
        self._sessions: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="selva-onnx")

    def load(self, name: str) -> None:
        """See `Executor.load`."""
        if name in self._sessions:
            return
        path = self._bundle.graph_path(name)
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = name == _HOT
        try:
            self._sessions[name] = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BackendError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error

    def run(self, name: str, feeds: Mapping[str, Tensor], cancel: Event | None = None) -> dict[str, Tensor]:
        """See `Executor.run`."""
        graph = self._bundle.manifest.graphs[name]
        check_feeds(graph, feeds)
        arrays = {port: np.asarray(values) for port, values in feeds.items()}
        self.load(name)
        outputs = [port.name for port in graph.outputs]
        return dict(zip(outputs, self._run(name, outputs, arrays, cancel), strict=True))

    def release(self, name: str) -> None:
        """See `Executor.release`."""
        self._sessions.pop(name, None)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Tensor:
        """See `Executor.empty`."""
        return np.empty(shape, dtype)

    def put(self, values: Tensor) -> Tensor:
        """See `Executor.put`."""
        return np.asarray(values)

    def adopt(self, array: Any) -> Tensor:
        """See `Executor.adopt`."""
        raise RequestError("the cpu backend takes NumPy arrays, not arrays on a GPU; copy it to the host first")

    def after(self, stream: int) -> None:
        """See `Executor.after`."""
        raise RequestError("the cpu backend has no streams; leave out stream, or choose the backend cuda or tensorrt")

    def finish(self) -> None:
        """See `Executor.finish`: nothing to keep."""

    def _run(self, name: str, outputs: list[str], feeds: Mapping[str, Array], cancel: Event | None) -> list[Array]:
        check_cancel(cancel)
        options = self._ort.RunOptions()
        future = self._pool.submit(self._sessions[name].run, outputs, dict(feeds), options)
        try:
            while not wait([future], timeout=_POLL_S).done:
                check_cancel(cancel)
        except BaseException:
            options.terminate = True
            wait([future])
            raise
        try:
            result: list[Array] = future.result()
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {name}: {first_line(error)}") from error
        return result


def import_onnxruntime(backend: str) -> Any:
    """The module; raises `BackendError` that says what to install."""
    try:
        import onnxruntime
    except ImportError as error:
        extra = "cpu" if backend == "cpu" else "gpu"
        raise BackendError(
            f"the {backend} backend needs ONNX Runtime: pip install 'selva-deploy[{extra}]' ({first_line(error)})"
        ) from error
    return onnxruntime


def first_line(error: Exception) -> str:
    """What an exception says, for a message of one line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
