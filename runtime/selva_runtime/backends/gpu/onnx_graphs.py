"""ONNX Runtime on the memory of a device: inputs and outputs are bound to addresses, and nothing is copied.

The CUDA provider works on the session's stream and makes its own CUDA graph of the repeated graph. The CPU provider
works on a `HostDevice`, so the device path can be tested without a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import count
from typing import Any
from weakref import WeakSet

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_bundle.ports import STEPS
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.device import Device
from selva_runtime.backends.gpu.device_array import DeviceArray
from selva_runtime.backends.onnx_cpu import first_line, import_onnxruntime, open_session

_CUDA = "CUDAExecutionProvider"
_OLDEST = (1, 31)
"""Before, a captured graph could keep the address of page-locked memory that was freed, and compute garbage."""
_REPLACE = "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'selva-deploy[gpu]'"
_LIBRARIES = "pip install --upgrade 'onnxruntime-gpu[cuda,cudnn]', and unset LD_LIBRARY_PATH if it names other versions"
_NO_CUDA_GRAPH = -1
_MOST_UNUSED = 16
"""CUDA graphs of plans that are gone. The CUDA provider cannot release one, so the session is opened again instead."""
_OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "alloc_failed", "bad allocation")


class OnnxGraphs:
    """The graphs of a bundle in ONNX Runtime.

    Raises:
        BackendError: ONNX Runtime is not installed or cannot use the GPU.
        BundleError: a file was altered.
    """

    segments_per_batch = 32
    stems_per_batch = 8

    def __init__(self, bundle: Bundle, device: Device, *, threads: int | None = None) -> None:
        self.shortfall = ""
        """What is slower than it could be, and why. Empty if nothing is."""
        self._bundle = bundle
        self._device = device
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._unrecorded: set[str] = set()
        """Graphs with nodes that a CUDA graph cannot hold."""
        self._graph_ids = count(1)
        self._recorded: Counter[str] = Counter()
        self._in_use: dict[str, WeakSet[BoundOnnxGraph]] = {}
        self._ort = import_onnxruntime(device.kind)
        if isinstance(device, CudaDevice):
            if _CUDA not in self._ort.get_available_providers():
                raise BackendError(f"the installed ONNX Runtime has no CUDA support: {_REPLACE}")
            version = self._ort.__version__
            if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
                raise BackendError(f"the installed ONNX Runtime {version} is too old for CUDA graphs: {_REPLACE}")
            self._ort.preload_dlls()  # finds CUDA and cuDNN where pip put them
        self.load(bundle.manifest.step)

    def load(self, name: str) -> None:
        """Verify the files of graph `name` and load it, unless it is loaded.

        Raises:
            BundleError: a file was altered.
            BackendError: ONNX Runtime cannot load the graph, or cannot use the GPU.
        """
        if name in self._sessions:
            return
        try:
            session = self._session(name, cuda_graph=name not in self._unrecorded)
        except DeviceMemoryError:
            raise
        except BackendError as error:
            if name in self._unrecorded or self._device.kind != "cuda":
                raise
            session = self._session(name, cuda_graph=False)  # it has nodes that a CUDA graph cannot hold
            self._unrecorded.add(name)
            if name in STEPS:
                self.shortfall = f"; steps run without a CUDA graph ({error})"
        if self._device.kind == "cuda" and _CUDA not in session.get_providers():
            raise BackendError(f"ONNX Runtime cannot load the libraries of CUDA 13 and cuDNN 9: {_LIBRARIES}")
        self._sessions[name] = session

    def bind(self, name: str, arrays: Mapping[str, DeviceArray], *, repeated: bool) -> BoundOnnxGraph:
        """Bind graph `name` to these inputs and outputs. A `repeated` binding runs many times a call."""
        in_use = self._in_use.setdefault(name, WeakSet())
        if self._recorded[name] - len(in_use) >= _MOST_UNUSED:
            self.release(name)
            self._recorded[name] = 0
            in_use.clear()
        self.load(name)
        session, graph = self._sessions[name], self._bundle.manifest.graphs[name]
        binding = session.io_binding()
        kind = self._device.kind
        for port in graph.inputs:
            array = arrays[port.name]
            binding.bind_input(port.name, kind, 0, array.dtype.type, list(array.shape), array.pointer)
        for port in graph.outputs:
            array = arrays[port.name]
            binding.bind_output(port.name, kind, 0, array.dtype.type, list(array.shape), array.pointer)
        recorded = kind == "cuda" and name not in self._unrecorded
        graph_id = next(self._graph_ids) if recorded else _NO_CUDA_GRAPH
        bound = BoundOnnxGraph(self._device, self._call(name, session, binding, graph_id), arrays)
        if recorded:
            self._recorded[name] += 1
            in_use.add(bound)
        return bound

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._sessions.pop(name, None)

    def save(self) -> None:
        """Do nothing: ONNX Runtime has nothing to save."""

    def _call(self, name: str, session: Any, binding: Any, graph_id: int) -> Callable[[], None]:
        options = self._ort.RunOptions()
        if self._device.kind == "cuda":
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
        captures = self._device.kind == "cuda" and graph_id != _NO_CUDA_GRAPH

        def call() -> None:
            try:
                with CudaDevice.recording() if captures else nullcontext():
                    session.run_with_iobinding(binding, options)
            except Exception as error:
                raise _error_type(error)(f"ONNX Runtime failed in graph {name}: {first_line(error)}") from error

        return call

    def _session(self, name: str, *, cuda_graph: bool) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        try:
            return open_session(self._ort, self._bundle, name, options, self._providers(cuda_graph), enable_fallback=0)
        except BackendError as error:
            raise _error_type(error.__cause__)(str(error)) from error

    def _providers(self, cuda_graph: bool) -> list[Any]:
        if not isinstance(self._device, CudaDevice):
            return ["CPUExecutionProvider"]
        cuda = {
            "device_id": "0",
            "user_compute_stream": str(self._device.stream),
            "enable_cuda_graph": str(int(cuda_graph)),
            "use_tf32": str(int(self._bundle.manifest.precision != "fp32")),  # an fp32 bundle promises float32
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
        }
        return [(_CUDA, cuda), "CPUExecutionProvider"]


class BoundOnnxGraph:
    """A graph with its inputs and outputs at fixed addresses. It keeps the arrays at those addresses alive."""

    def __init__(self, device: Device, call: Callable[[], None], arrays: Mapping[str, DeviceArray]) -> None:
        self.recordable = device.kind != "cuda"
        """False on CUDA: the library records the graph itself, and a recording cannot contain another."""
        self._device = device
        self._call = call
        self._arrays = dict(arrays)

    def __call__(self) -> None:
        """Queue one run."""
        self._device.enqueue(self._call)


def _error_type(error: BaseException | None) -> type[BackendError]:
    text = str(error).lower()
    return DeviceMemoryError if any(sign in text for sign in _OUT_OF_MEMORY) else BackendError
