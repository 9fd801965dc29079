"""An NVIDIA GPU through cuda-python: memory, one stream, events and CUDA graphs.

cuda-python is an extra, and only this module imports it. The GPU is CUDA's device 0 (CUDA_VISIBLE_DEVICES chooses
which that is) in the primary context of the process. So pointers and streams of PyTorch, CuPy and most other programs
can be used.
"""

from __future__ import annotations

import ctypes
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from selva_bundle.errors import BackendError, DeviceMemoryError, RequestError
from selva_runtime.backends.gpu.cuda_kernels import CudaKernels

_OUT_OF_MEMORY = ("cudaErrorMemoryAllocation",)
_NO_GPU = {
    "cudaErrorNoDevice": "see CUDA_VISIBLE_DEVICES",
    "cudaErrorInsufficientDriver": "install NVIDIA's driver 580 or newer",
    "cudaErrorStubLibrary": "install NVIDIA's driver 580 or newer",
}
"""CUDA's errors if no GPU can be reached → what the user can do."""
_NVIDIA, _DISPLAY = "0x10de", "0x03"
"""PCI vendor of NVIDIA, and the first digits of the PCI class of display and compute devices."""


def has_nvidia_gpu(devices: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the machine seems to have an NVIDIA GPU: it has nvidia-smi, or such a GPU on the PCI bus."""
    if shutil.which("nvidia-smi"):
        return True
    kinds = ((device / "vendor", device / "class") for device in (devices.iterdir() if devices.is_dir() else ()))
    return any(
        vendor.is_file() and vendor.read_text().strip() == _NVIDIA and kind.read_text().startswith(_DISPLAY)
        for vendor, kind in kinds
    )


class CudaDevice:
    """The `Device` that is a real GPU.

    Raises:
        BackendError: there is no GPU, no driver or no cuda-python.
    """

    kind = "cuda"

    def __init__(self) -> None:
        self._cuda = _import_cuda("runtime")
        count = self._call("cudaGetDeviceCount")
        if count == 0:
            raise BackendError("no NVIDIA GPU is visible (see CUDA_VISIBLE_DEVICES)")
        self._call("cudaSetDevice", 0)
        self.name, self.capability = self._properties()
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))
        """Handle of the one stream that all work of a session uses."""
        self._destroy_with(self, "cudaStreamDestroy", self.stream)

    @property
    def free_bytes(self) -> int:
        """Free memory of the GPU, bytes."""
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def allocate(self, nbytes: int) -> int:
        """Return a pointer to new memory, aligned to 256 bytes.

        Raises:
            DeviceMemoryError: the GPU has too little memory.
        """
        return int(self._call("cudaMalloc", nbytes))

    def free(self, pointer: int) -> None:
        """Free memory once all queued work is done with it. CUDA itself waits for the whole device first."""
        _DISCARDED.add(self._cuda, "cudaFree", pointer)

    def staging(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """Allocate host memory that the device can read and write directly (page-locked)."""
        pointer = int(self._call("cudaHostAlloc", nbytes, self._cuda.cudaHostAllocDefault))
        memory = (ctypes.c_uint8 * nbytes).from_address(pointer)
        weakref.finalize(memory, self._free_staging, pointer).atexit = False
        return np.ctypeslib.as_array(memory)

    def _free_staging(self, pointer: int) -> None:
        _DISCARDED.add(self._cuda, "cudaStreamSynchronize", self.stream)  # queued copies may still use it
        _DISCARDED.add(self._cuda, "cudaFreeHost", pointer)

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Queue a copy of `nbytes`. Each side is memory of this device or its staging memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, nbytes, kind, self.stream)

    def enqueue(self, work: Callable[[], None]) -> None:
        """Queue `work`, which itself queues kernels and returns."""
        work()

    def mark(self) -> Any:
        """Return the current end of the queue, for `wait`."""
        return self._record(self.stream)

    def wait(self, mark: Any) -> None:
        """Return when all work before `mark` is done. Later work continues."""
        self._call("cudaEventSynchronize", mark.event)

    def synchronise(self) -> None:
        """Return when all queued work is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def synchronise_all(self) -> None:
        """Return when all work on the device is done, also that of other programs in this process."""
        self._call("cudaDeviceSynchronize")

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues as a CUDA graph, without running it. Other threads may use the GPU meanwhile."""
        # relaxed: a library may free its own memory meanwhile, when Python's collector comes by
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
        with self.recording():
            self._call("cudaStreamBeginCapture", self.stream, mode)
            try:
                work()
            except BaseException:
                _ignoring_errors(self._cuda, "cudaStreamEndCapture", self.stream)
                raise
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

        def replay() -> None:
            self._call("cudaGraphLaunch", executable, self.stream)

        self._destroy_with(replay, "cudaGraphExecDestroy", executable)
        self._call("cudaGraphUpload", executable, self.stream)
        return replay

    @staticmethod
    def recording() -> AbstractContextManager[None]:
        """Keep everything that is freed until the end, because CUDA may forbid to free during a capture."""
        return _DISCARDED.kept()

    def after(self, stream: int) -> None:
        """Make later work wait for the work now in the caller's `stream`: 0 and 1 are the default, 2 is per thread."""
        mark = self._record(stream)  # its event is destroyed with it
        self._call("cudaStreamWaitEvent", self.stream, mark.event, 0)

    def check_pointer(self, pointer: int) -> None:
        """Check that this device can read the memory at `pointer`.

        Raises:
            RequestError: it cannot.
        """
        kinds = self._cuda.cudaMemoryType
        found = self._call("cudaPointerGetAttributes", pointer)
        if found.type not in (kinds.cudaMemoryTypeDevice, kinds.cudaMemoryTypeManaged) or found.device != 0:
            raise RequestError(f"the array is not in the memory of {self.name}, which this session runs on; copy it")

    @cached_property
    def kernels(self) -> CudaKernels:
        """The operations of the solvers."""
        return CudaKernels(_import_cuda("driver"), self.stream)

    def _record(self, stream: int) -> _Mark:
        mark = _Mark(self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming))
        self._destroy_with(mark, "cudaEventDestroy", mark.event)
        self._call("cudaEventRecord", mark.event, stream)
        return mark

    def _destroy_with(self, owner: object, function: str, handle: Any) -> None:
        weakref.finalize(owner, _DISCARDED.add, self._cuda, function, handle).atexit = False

    def _properties(self) -> tuple[str, str]:
        found = self._call("cudaGetDeviceProperties", 0)
        return found.name.decode(errors="replace").rstrip("\0"), f"{found.major}.{found.minor}"

    def _call(self, function: str, *arguments: Any) -> Any:
        error, *values = getattr(self._cuda, function)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            self._cuda.cudaGetLastError()  # otherwise the next call reports it again
            kind = DeviceMemoryError if error.name in _OUT_OF_MEMORY else BackendError
            raise kind(_message(self._cuda, function, error))
        return values[0] if len(values) == 1 else tuple(values)


class _Discarded:
    """What nothing refers to any more: memory, streams, events, recordings.

    Python's collector calls finalisers at any time and in any thread, also during a capture. CUDA can then refuse to
    free anything, and the capture breaks. So all of it is kept until no capture is under way in this process.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._captures = 0
        self._waiting: deque[tuple[Any, str, Any]] = deque()

    def add(self, cuda: Any, function: str, handle: Any) -> None:
        """Call a function of CUDA that destroys or frees, now or after the captures."""
        self._waiting.append((cuda, function, handle))
        self._empty()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep everything meanwhile."""
        with self._lock:
            self._captures += 1
        try:
            yield
        finally:
            with self._lock:
                self._captures -= 1
            self._empty()

    def _empty(self) -> None:
        with self._lock:
            while self._waiting and not self._captures:
                cuda, function, handle = self._waiting.popleft()
                _ignoring_errors(cuda, function, handle)


_DISCARDED = _Discarded()


class _Mark:
    """A recorded event. A finaliser cannot be attached to the binding's own object."""

    def __init__(self, event: Any) -> None:
        self.event = event


def _import_cuda(api: str) -> Any:
    try:
        return import_module(f"cuda.bindings.{api}")
    except Exception as error:  # missing, or a broken installation, which can raise anything
        missing = "cuda-python is not installed" if isinstance(error, ImportError) else f"cuda-python fails ({error})"
        raise BackendError(f"{missing}; GPU backends need it: pip install 'selva-deploy[gpu]'") from error


def _ignoring_errors(cuda: Any, function: str, handle: Any) -> None:
    if getattr(cuda, function)(handle)[0] != cuda.cudaError_t.cudaSuccess:
        cuda.cudaGetLastError()  # otherwise the next call reports it


def _message(cuda: Any, function: str, error: Any) -> str:
    if error.name in _OUT_OF_MEMORY:
        return "the GPU is out of memory; close other programs, or choose fewer prompts or a shorter duration"
    if error.name in _NO_GPU:
        return f"no NVIDIA GPU with a driver for CUDA 13 can be used here ({error.name}); {_NO_GPU[error.name]}"
    _, text = cuda.cudaGetErrorString(error)
    return f"CUDA: {function} failed: {text.decode(errors='replace')} ({error.name})"
