"""TensorRT and TensorRT-RTX engines on a GPU: verified, deserialised, bound to addresses, with shared scratch memory.

`selva_engines` finds and checks the engines. It loads both libraries, which have one API. Engines run one after
another, so all of them use one block for their activations. A graph that is recorded gets its own execution context,
because a recording contains the state of its context.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Lock, Thread
from typing import Any

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError, DeviceMemoryError
from selva_bundle.ports import STEPS, VIDEO_BACKBONE
from selva_runtime.backends.gpu.cuda_device import CudaDevice
from selva_runtime.backends.gpu.device_array import Block, DeviceArray, MemoryPool
from selva_runtime.backends.gpu.kernel_cache import CacheFile

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "memory allocation", "cudaerrormemoryallocation")


def open_graphs(bundle: Bundle, device: CudaDevice, pool: MemoryPool) -> TensorRtGraphs:
    """Open the engines of the first library that is installed, has engines in the bundle and runs them on this GPU.

    Raises:
        BackendError: no library does. The message says what is missing for each.
        DeviceMemoryError: the GPU has too little memory.
    """
    try:
        engines = import_module("selva_engines")
    except ImportError as error:
        raise BackendError("the tensorrt backend needs the package selva_engines; reinstall selva-deploy") from error
    refused = []
    for target in engines.TARGETS:
        try:
            return TensorRtGraphs(bundle, device, pool, engines, target)
        except DeviceMemoryError:
            raise
        except BackendError as error:
            refused.append(str(error))
    raise BackendError("; ".join(refused))


class TensorRtGraphs:
    """The graphs of a bundle as engines of TensorRT or TensorRT-RTX.

    Raises:
        BackendError: the engines do not run here.
    """

    def __init__(self, bundle: Bundle, device: CudaDevice, pool: MemoryPool, engines: Any, target: str) -> None:
        self._bundle, self._device, self._pool = bundle, device, pool
        self._engine_error = engines.EngineError
        with self._as_backend_errors():
            self._api = engines.load_library(target)
            found = engines.find_engines(bundle.path, target, self._api.version, device.capability)
            self._loader = engines.EngineLoader(self._api, found)
        self.library = f"{target} {self._api.version}"
        self.segments_per_batch = _max_rows(found, VIDEO_BACKBONE, "segments")
        steps = [name for name in STEPS if name in found.engines]
        self.stems_per_batch = min((_max_rows(found, name, "latents") for name in steps), default=1)
        self._engines: dict[str, Any] = {}
        self._seen_shapes: set[tuple[Any, ...]] = set()
        self._has_new_shapes = False
        self._scratch: Block | None = None
        self._cache = RuntimeCache(found, self.library, device) if target == "tensorrt-rtx" else None
        if self._cache is not None:
            weakref.finalize(self, self._cache.save)  # also at exit: some kernels are compiled in the background
        self.load(bundle.manifest.step)

    def load(self, name: str) -> None:
        """Verify the engine of graph `name` and load it, unless it is loaded.

        Raises:
            BackendError: the engine was altered, or TensorRT refuses it.
        """
        if name not in self._engines:
            with self._as_backend_errors():
                self._engines[name] = self._loader.load(name)

    def bind(self, name: str, arrays: Mapping[str, DeviceArray], *, repeated: bool) -> BoundTensorRtGraph:
        """Bind graph `name` to these inputs and outputs. A `repeated` binding runs many times a call.

        Raises:
            BackendError: the engine does not take these arrays.
            DeviceMemoryError: the GPU has too little memory.
        """
        self.load(name)
        self._api.log.clear()
        self._remember_shapes(name, arrays)
        context = self._context(self._engines[name], repeated=repeated)
        for port in self._bundle.manifest.graphs[name].inputs:
            if not context.set_input_shape(port.name, arrays[port.name].shape):
                shape = list(arrays[port.name].shape)
                raise self._failure(f"the engine for {name} does not accept {port.name} {shape}: build it again")
        for port_name, array in arrays.items():
            if not context.set_tensor_address(port_name, array.pointer):
                raise self._failure(f"the engine for {name} has no {port_name}")
        scratch = self._scratch_block(context.update_device_memory_size_for_shapes())
        context.set_device_memory(scratch.pointer, scratch.nbytes)

        def execute() -> None:
            if not context.execute_async_v3(self._device.stream):
                raise self._failure(f"the engine for {name} failed to run")

        capturable = getattr(context, "is_stream_capturable", None)  # in TensorRT a stream always is
        recordable = capturable is None or (repeated and bool(capturable(self._device.stream)))
        return BoundTensorRtGraph(self._device, execute, recordable, (context, scratch, dict(arrays)))

    def release(self, name: str) -> None:
        """Free graph `name`. It is loaded again at its next use."""
        self._engines.pop(name, None)

    def save(self) -> None:
        """Save RTX's compiled kernels to disk in the background, if there was a new shape."""
        if self._cache is not None and self._has_new_shapes:
            self._has_new_shapes = False
            Thread(target=self._cache.save, name="selva-kernel-cache").start()

    def _remember_shapes(self, name: str, arrays: Mapping[str, DeviceArray]) -> None:
        shapes = (name, *((port, array.shape) for port, array in sorted(arrays.items())))
        self._has_new_shapes = self._has_new_shapes or shapes not in self._seen_shapes
        self._seen_shapes.add(shapes)

    def _context(self, engine: Any, *, repeated: bool) -> Any:
        api = self._api.api
        ours = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._cache is None:
            context = engine.create_execution_context(ours)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(ours)
            kernels = api.DynamicShapesKernelSpecializationStrategy
            if repeated:  # we record it: a recording keeps its kernels, so they must be the final ones
                config.dynamic_shapes_kernel_specialization_strategy = kernels.EAGER
            else:  # the library records it, again when better kernels are compiled
                config.dynamic_shapes_kernel_specialization_strategy = kernels.LAZY
                config.cuda_graph_strategy = api.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._cache.attach(config)
            context = engine.create_execution_context(config)
        if context is None:
            raise self._failure("could not create an execution context")
        return context

    def _scratch_block(self, nbytes: int) -> Block:
        """Return the block for activations. A larger block replaces a smaller one, which recordings may still use."""
        if self._scratch is None or nbytes > self._scratch.nbytes:
            self._scratch = None  # so that its memory can be used for the new one
            self._scratch = self._pool.block(nbytes)
        return self._scratch

    def _failure(self, what: str) -> BackendError:
        said = self._api.log.error_line()
        kind = DeviceMemoryError if any(sign in said.lower() for sign in _OUT_OF_MEMORY) else BackendError
        return kind(f"{self.library}: {what} ({said})")

    @contextmanager
    def _as_backend_errors(self) -> Iterator[None]:
        try:
            yield
        except self._engine_error as error:
            kind = DeviceMemoryError if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY) else BackendError
            raise kind(str(error)) from error


class BoundTensorRtGraph:
    """A graph with its inputs and outputs at fixed addresses. `kept` holds the objects that the queued work uses."""

    def __init__(
        self, device: CudaDevice, execute: Callable[[], None], recordable: bool, kept: tuple[Any, ...]
    ) -> None:
        self.recordable = recordable
        self._device = device
        self._execute = execute
        self._kept = kept

    def __call__(self) -> None:
        """Queue one run."""
        self._device.enqueue(self._execute)


class RuntimeCache:
    """RTX's cache of compiled kernels in a file, one for all engines of a set. No failure of it fails a run."""

    def __init__(self, engines: Any, library: str, device: CudaDevice) -> None:
        hashes = "".join(record.sha256 for _, record in sorted(engines.engines.items()))
        key = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        self._file = CacheFile(f"{library}-{device.name}-{key}")
        self._cache: Any = None
        self._saved_bytes = 0
        self._lock = Lock()

    def attach(self, config: Any) -> None:
        """Make contexts with this `config` use the cache. The first call reads the file."""
        with suppress(Exception):  # the library may raise anything
            if self._cache is None:
                self._cache = config.create_runtime_cache()
                stored = self._file.read()
                # the library itself refuses a cache of another version, GPU or driver
                if stored is not None and self._cache.deserialize(stored):
                    self._saved_bytes = len(stored)
            if not config.set_runtime_cache(self._cache):
                self._cache = None  # what it holds is not of our contexts

    def save(self) -> None:
        """Write the file if the cache has grown. The library's cache may be read while contexts add to it."""
        with suppress(Exception), self._lock:
            content = b"" if self._cache is None else bytes(self._cache.serialize() or b"")
            if len(content) > self._saved_bytes and self._file.write(content):
                self._saved_bytes = len(content)


def _max_rows(engines: Any, graph: str, port: str) -> int:
    """Most rows that an engine takes. 1 if the set does not have it: the error comes when it is loaded."""
    record = engines.engines.get(graph)
    return 1 if record is None else int(record.profile[port]["max"][0])
