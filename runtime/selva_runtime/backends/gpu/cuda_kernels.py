"""The two kernels of `kernels.cu`, as PTX that NVIDIA's driver compiles for its GPU: the user needs no compiler.

They are loaded as a library, which belongs to no context, so that any thread can launch them. A process loads them once
and keeps them.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selva_bundle.errors import BackendError, DeviceMemoryError

if TYPE_CHECKING:
    from selva_runtime.backends.gpu.device_array import DeviceArray

PTX = Path(__file__).with_name("kernels.ptx")
_THREADS = 256
"""Threads in a block."""


class CudaKernels:
    """The `Kernels` of a GPU, launched in `stream`. `driver` is the module `cuda.bindings.driver`.

    Raises:
        BackendError: the driver cannot compile the kernels.
    """

    def __init__(self, driver: Any, stream: int) -> None:
        self._driver = driver
        self._stream = stream
        self._blend, self._advance = _load(driver)
        for kernel, pointers, counts in ((self._blend, 3, 3), (self._advance, 4, 1)):
            # CUDA may load code at its first launch, which a recording forbids. For no numbers, it does nothing.
            self._launch(kernel, [0] * pointers, [0] * counts)

    def blend(self, state: DeviceArray, known: DeviceArray, weights: DeviceArray) -> None:
        """`state` = (1 - w) `state` + w `known`."""
        stems, length, width = state.shape
        self._launch(self._blend, _addresses(state, known, weights), [stems * length * width, length, width])

    def advance(self, state: DeviceArray, euler: DeviceArray, last: DeviceArray, gain: DeviceArray) -> None:
        """`state` = `euler` + gain (change - `last`), `last` = change."""
        stems, length, width = state.shape
        self._launch(self._advance, _addresses(state, euler, last, gain), [stems * length * width])

    def _launch(self, kernel: int, pointers: list[int], counts: list[int]) -> None:
        """Queue a kernel for the `counts[0]` numbers of a state."""
        blocks = max(1, -(-counts[0] // _THREADS))
        kinds = [ctypes.c_void_p] * len(pointers) + [ctypes.c_uint32] * len(counts)
        arguments = (tuple(pointers + counts), tuple(kinds))
        _call(self._driver, "cuLaunchKernel", kernel, blocks, 1, 1, _THREADS, 1, 1, 0, self._stream, arguments, 0)


@lru_cache(maxsize=1)
def _load(driver: Any) -> tuple[int, int]:
    library = _call(driver, "cuLibraryLoadData", PTX.read_bytes() + b"\0", [], [], 0, [], [], 0)
    blend, advance = (int(_call(driver, "cuLibraryGetKernel", library, name)) for name in (b"blend", b"advance"))
    return blend, advance


def _addresses(*arrays: DeviceArray) -> list[int]:
    return [array.pointer for array in arrays]


def _call(driver: Any, function: str, *arguments: Any) -> Any:
    error, *values = getattr(driver, function)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(error)
        kind = DeviceMemoryError if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else BackendError
        raise kind(f"CUDA: {function} failed: {text.decode(errors='replace')} ({error.name})")
    return values[0] if values else None
