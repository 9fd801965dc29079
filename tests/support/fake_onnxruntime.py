"""A fake `onnxruntime` with a CUDA provider: graphs run in ONNX Runtime's CPU provider, queued on the fake GPU.

It keeps the provider's rules: a captured graph belongs to an annotation id and replays the addresses and shapes of its
capture, the capture is global (it forbids unsafe calls to every thread), a session synchronises unless told not to, and
`release_captured_graph` does nothing. Weights take device memory while the session lives.

It does not model: the arena's memory for values inside a graph, TF32, convolution algorithms, and nodes that the
provider leaves to the CPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from device_work import Range
from fake_cuda import FakeCuda

CUDA = "CUDAExecutionProvider"
_NOT_CAPTURED = -1


class FakeOnnxRuntime:
    """Replaces the module."""

    SessionOptions = onnxruntime.SessionOptions

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.__version__ = "1.31.1"
        self.without_libraries = False
        """Whether the CUDA provider gives up, as it does without its libraries."""
        self.preloaded = False
        self.sessions: weakref.WeakSet[Session] = weakref.WeakSet()

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.preloaded = True

    def RunOptions(self) -> RunOptions:  # noqa: N802
        return RunOptions()

    def InferenceSession(self, source: Any, options: Any, *, providers: Any, enable_fallback: int) -> Session:  # noqa: N802
        assert self.preloaded, "pip's CUDA libraries are found by preload_dlls alone"
        assert not enable_fallback
        (name, settings), _ = providers
        assert name == CUDA
        made = Session(self.cuda, source, options, settings)
        if self.without_libraries:
            made.providers.remove(CUDA)
        self.sessions.add(made)
        return made


class RunOptions:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


class Binding:
    """Addresses of a graph's inputs and outputs."""

    def __init__(self) -> None:
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.outputs: dict[str, tuple[Any, ...]] = {}

    def bind_input(self, name: str, kind: str, device: int, dtype: Any, shape: list[int], pointer: int) -> None:
        assert (kind, device) == ("cuda", 0)
        self.inputs[name] = (dtype, tuple(shape), pointer)

    def bind_output(self, name: str, kind: str, device: int, dtype: Any, shape: list[int], pointer: int) -> None:
        assert (kind, device) == ("cuda", 0)
        self.outputs[name] = (dtype, tuple(shape), pointer)


class Session:
    """One graph."""

    def __init__(self, cuda: FakeCuda, source: Any, options: Any, settings: dict[str, str]) -> None:
        options.intra_op_num_threads = 1
        self._cuda = cuda
        self.providers = [CUDA, "CPUExecutionProvider"]
        self._real = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._stream = int(settings["user_compute_stream"])
        self._captures = settings["enable_cuda_graph"] == "1"
        self.captured: dict[int, tuple[Any, Any]] = {}
        """Executable graph and bound addresses of each annotation id."""
        error, weights = cuda.cudaMalloc(len(source) if isinstance(source, bytes) else 2**20)
        self._expect(error)
        weakref.finalize(self, _end, cuda, weights, self.captured).atexit = False

    def get_providers(self) -> list[str]:
        return self.providers

    def io_binding(self) -> Binding:
        return Binding()

    def release_captured_graph(self, graph_id: int) -> None:
        """Does nothing, as the CUDA provider."""

    def run_with_iobinding(self, binding: Binding, options: RunOptions) -> None:
        graph_id = int(options.entries.get("gpu_graph_id", "0"))
        if self._captures and graph_id != _NOT_CAPTURED:
            self._replay(graph_id, binding)
        else:
            self._launch(binding)
        if options.entries.get("disable_synchronize_execution_providers") != "1":
            self._expect(*self._cuda.cudaStreamSynchronize(self._stream))

    def _replay(self, graph_id: int, binding: Binding) -> None:
        addresses = (dict(binding.inputs), dict(binding.outputs))
        if graph_id not in self.captured:
            self._launch(binding)  # allocates what the capture must not
            self.captured[graph_id] = (self._capture(binding), addresses)
        executable, recorded = self.captured[graph_id]
        if recorded != addresses:
            self._cuda.violations.append(f"graph {graph_id} replays the addresses of its capture, not those bound now")
        self._expect(*self._cuda.cudaGraphLaunch(executable, self._stream))

    def _capture(self, binding: Binding) -> Any:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeGlobal
        self._expect(*self._cuda.cudaStreamSynchronize(self._stream))
        self._expect(*self._cuda.cudaStreamBeginCapture(self._stream, mode))
        self._launch(binding)
        error, graph = self._cuda.cudaStreamEndCapture(self._stream)
        self._expect(error)
        error, executable = self._cuda.cudaGraphInstantiate(graph, 0)
        self._expect(error, *self._cuda.cudaGraphDestroy(graph))
        return executable

    def _launch(self, binding: Binding) -> None:
        ranges = [
            [Range(at, int(np.prod(shape)) * np.dtype(dtype).itemsize) for dtype, shape, at in side.values()]
            for side in (binding.inputs, binding.outputs)
        ]
        self._expect(self._cuda.launch("graph", self._stream, self._run(binding), *ranges))

    def _run(self, binding: Binding) -> Callable[[], None]:
        real, bound = self._real, self._real.io_binding()
        for bind, ports in ((bound.bind_input, binding.inputs), (bound.bind_output, binding.outputs)):
            for name, (dtype, shape, pointer) in ports.items():
                bind(name, "cpu", 0, dtype, shape, pointer)
        return lambda: real.run_with_iobinding(bound)

    def _expect(self, *errors: Any) -> None:
        for error in errors:
            if error != self._cuda.cudaError_t.cudaSuccess:
                self._cuda.cudaGetLastError()
                if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
                    raise RuntimeError("Failed to allocate memory for requested buffer")
                raise RuntimeError(f"CUDA failure {int(error)}: {error.name}")


def _end(cuda: FakeCuda, weights: int, captured: dict[int, tuple[Any, Any]]) -> None:
    for executable, _ in captured.values():
        cuda.cudaGraphExecDestroy(executable)
    cuda.cudaFree(weights)
