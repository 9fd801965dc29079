"""ONNX Runtime on the CPU: the backend that runs everywhere.

onnxruntime is an extra and slow to import, so only this module imports it, and only when a session needs it. A run
uses a worker thread. So Ctrl-C and the caller's cancel event can stop a graph that takes many seconds (the vocoder, a
backbone segment) between two of its nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from typing import Any

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, BundleError
from selva_bundle.manifest import Graph
from selva_bundle.ports import STEPS, TEXT_CLIP, TEXT_T5
from selva_runtime.backends.cores import usable_cores
from selva_runtime.backends.executor import POLL_S, Array, check_cancel
from selva_runtime.backends.numpy_executor import NumpyExecutor

_RUN_ONCE = (TEXT_T5, TEXT_CLIP)
"""Graphs that are loaded for one short run. Packing their weights takes three times the time it saves, and 1 GB."""


class OnnxCpuExecutor(NumpyExecutor):
    """Runs a bundle's graphs on `threads` CPU threads (None: as many as the process may use).

    Raises:
        BackendError: ONNX Runtime is not installed.
    """

    backend = "cpu"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, reason: str = "asked for") -> None:
        super().__init__(bundle, reason)
        self._threads = threads or usable_cores()
        self._ort = import_onnxruntime(self.backend)
        self._sessions: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="selva-onnx")

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded."""
        if name in self._sessions:
            return
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_cpu_mem_arena = name in STEPS  # they run many times with the same shapes
        if name in _RUN_ONCE:
            options.add_session_config_entry("session.disable_prepacking", "1")
        self._sessions[name] = open_session(self._ort, self._bundle, name, options, ["CPUExecutionProvider"])

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._sessions.pop(name, None)

    def _run(self, graph: Graph, feeds: Mapping[str, Array], cancel: Event | None) -> dict[str, Array]:
        self.load(graph.name)
        names = [port.name for port in graph.outputs]
        options = self._ort.RunOptions()
        future = self._pool.submit(self._sessions[graph.name].run, names, dict(feeds), options)
        try:
            while not wait([future], timeout=POLL_S).done:
                check_cancel(cancel)
        except BaseException:
            options.terminate = True
            wait([future])
            raise
        try:
            return dict(zip(names, future.result(), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {graph.name}: {first_line(error)}") from error


def import_onnxruntime(backend: str) -> Any:
    """Import ONNX Runtime for `backend`.

    Raises:
        BackendError: it is not installed. The message says what to install.
    """
    try:
        import onnxruntime
    except ImportError as error:
        extra = "cpu" if backend == "cpu" else "gpu"
        raise BackendError(
            f"the {backend} backend needs ONNX Runtime: pip install 'selva-deploy[{extra}]' ({first_line(error)})"
        ) from error
    return onnxruntime


def open_session(ort: Any, bundle: Bundle, name: str, options: Any, providers: Sequence[Any], **more: Any) -> Any:
    """Verify the files of a graph and open an `InferenceSession` on it.

    Raises:
        BundleError: a file was altered.
        BackendError: ONNX Runtime cannot load the graph.
    """
    path = bundle.onnx_path(name)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        with bundle.open_graph(name) as source:
            return ort.InferenceSession(source, options, providers=providers, **more)
    except BundleError:
        raise
    except Exception as error:
        raise BackendError(f"ONNX Runtime cannot load {path}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
