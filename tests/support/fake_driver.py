# ruff: noqa: N802
"""A fake of the module `cuda.bindings.driver`: libraries of PTX, whose kernels are queued on the fake GPU and run.

A violation is: a kernel that is unknown, that has other parameters than the launch gives, or whose code would be loaded
during a capture. Only memory that `USES` names may be touched. A library stays until the process ends.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import ptx
from cuda.bindings import driver as real
from device_work import Range, Task

_RESULT = real.CUresult
_NEWEST_PTX = (9, 0)
"""Of NVIDIA's driver 580."""
_FIRST_HANDLE = 0x11B0000
_FLOAT_BYTES = 4
USES = {
    "blend": lambda x, v, w, size, length, width: ([(x, size), (v, size), (w, length)], [(x, size)]),
    "advance": lambda x, y, last, gain, size: (
        [(x, size), (y, size), (last, size), (gain, 1)],
        [(x, size), (last, size)],
    ),
}
"""What each kernel reads and writes: addresses and numbers of float32."""


class FakeDriver:
    """Replaces the module. `cuda` is the fake runtime of the same GPU."""

    CUresult = _RESULT

    def __init__(self, cuda: Any) -> None:
        self.calls = 0
        """How often a kernel was launched."""
        self._cuda = cuda
        self._handles: dict[int, Any] = {}
        self._loaded: set[int] = set()

    def cuGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return _RESULT.CUDA_SUCCESS, error.name.encode()

    def cuLibraryLoadData(
        self, code: bytes, jit: list, jit_values: list, jits: int, options: list, option_values: list, count: int
    ) -> tuple[Any, Any]:
        assert len(jit) == len(jit_values) == jits
        assert len(options) == len(option_values) == count
        self._refuse_capture("a library is loaded")
        if not isinstance(code, bytes) or not code.endswith(b"\0"):
            return _RESULT.CUDA_ERROR_INVALID_PTX, None
        text = code.rstrip(b"\0").decode("ascii")
        version, target = re.search(r"\.version (\d+)\.(\d+)", text), re.search(r"\.target sm_(\d+)\s", text)
        if tuple(map(int, version.groups())) > _NEWEST_PTX:
            return _RESULT.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None
        major, minor = self._cuda.capability
        if int(target[1]) > 10 * major + minor:
            return _RESULT.CUDA_ERROR_NO_BINARY_FOR_GPU, None
        return _RESULT.CUDA_SUCCESS, real.CUlibrary(self._make(ptx.kernels(text)))

    def cuLibraryGetKernel(self, library: Any, name: bytes) -> tuple[Any, Any]:
        kernel = self._handles[int(library)].get(name.decode())
        if kernel is None:
            return _RESULT.CUDA_ERROR_NOT_FOUND, None
        return _RESULT.CUDA_SUCCESS, real.CUkernel(self._make(kernel))

    def cuLaunchKernel(self, kernel: int, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, *rest: Any) -> tuple:
        shared, stream, (values, kinds), extra = rest
        found = self._handles.get(int(kernel))
        if not isinstance(found, ptx.Kernel):
            return self._wrong(f"kernel {kernel:#x} is unknown", _RESULT.CUDA_ERROR_INVALID_HANDLE)
        if (gy, gz, by, bz, shared, extra) != (1, 1, 1, 1, 0, 0) or not (0 < gx < 2**31 and 0 < bx <= 1024):
            return self._wrong(f"{found.name}: {gx} blocks of {bx} threads", _RESULT.CUDA_ERROR_INVALID_VALUE)
        sizes = [np.dtype(kind).itemsize for kind in kinds]
        if sizes != found.sizes or len(values) != len(kinds):
            return self._wrong(
                f"{found.name} takes parameters of {found.sizes} bytes, not {sizes}", _RESULT.CUDA_ERROR_INVALID_VALUE
            )
        if int(kernel) not in self._loaded:
            self._refuse_capture(f"{found.name} is loaded")
            self._loaded.add(int(kernel))
        self.calls += 1
        reads, writes = (self._ranges(part) for part in USES[found.name](*values))

        def touch(addresses: np.ndarray, is_write: bool) -> None:
            allowed = writes if is_write else (*reads, *writes)
            inside = [(each.pointer <= addresses) & (addresses < each.pointer + each.nbytes) for each in allowed]
            if not np.any(inside, axis=0).all():
                self._cuda.violations.append(f"{found.name} touches memory that it was not given")

        def run() -> None:
            found.run(gx, bx, values, touch)

        task = Task(name=found.name, reads=reads, writes=writes, run=run)
        return (_RESULT.CUDA_SUCCESS if self._cuda.take(stream, task) else _RESULT.CUDA_ERROR_INVALID_VALUE,)

    def _ranges(self, parts: list[tuple[int, int]]) -> tuple[Range, ...]:
        return tuple(Range(pointer, _FLOAT_BYTES * count) for pointer, count in parts if count and pointer)

    def _refuse_capture(self, what: str) -> None:
        if self._cuda.captures:
            self._cuda.violations.append(f"{what} during a capture")

    def _wrong(self, what: str, error: Any) -> tuple[Any]:
        self._cuda.violations.append(what)
        return (error,)

    def _make(self, what: Any) -> int:
        handle = _FIRST_HANDLE + 16 * len(self._handles)
        self._handles[handle] = what
        return handle
