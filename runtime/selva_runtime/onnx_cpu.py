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

from .bundle import Bundle
from .cores import usable_cores
from .errors import BackendError, Cancelled
from .executor import Array, check_feeds

_POLL_S = 0.05
_HOT = "guided_step"
"""The one graph that runs many times over with the same shapes, and so gains from keeping its memory."""


class OnnxCpuExecutor:
    """Runs a bundle's graphs on `threads` CPU threads (None: as many as the process may use)."""

    backend = "cpu"
    segments_per_batch = 1
    stems_per_batch = 4

    def __init__(self, bundle: Bundle, *, threads: int | None = None) -> None:
        self._bundle = bundle
        self._threads = threads or usable_cores()
        self._ort = _import_onnxruntime()
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
            raise BackendError(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error

    def run(self, name: str, feeds: Mapping[str, Array], cancel: Event | None = None) -> dict[str, Array]:
        """See `Executor.run`."""
        graph = self._bundle.manifest.graphs[name]
        check_feeds(graph, feeds)
        self.load(name)
        outputs = [port.name for port in graph.outputs]
        return dict(zip(outputs, self._run(name, outputs, feeds, cancel), strict=True))

    def release(self, name: str) -> None:
        """See `Executor.release`."""
        self._sessions.pop(name, None)

    def _run(self, name: str, outputs: list[str], feeds: Mapping[str, Array], cancel: Event | None) -> list[Array]:
        _check_cancel(cancel)
        options = self._ort.RunOptions()
        future = self._pool.submit(self._sessions[name].run, outputs, dict(feeds), options)
        try:
            while not wait([future], timeout=_POLL_S).done:
                _check_cancel(cancel)
        except BaseException:
            options.terminate = True
            wait([future])
            raise
        try:
            result: list[Array] = future.result()
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {name}: {_first_line(error)}") from error
        return result


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError("the cpu backend needs ONNX Runtime: pip install 'selva-deploy[cpu]'") from error
    return onnxruntime


def _check_cancel(cancel: Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("cancelled: the caller's event was set")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
