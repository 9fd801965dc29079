"""Arrays and streams of other GPU libraries, checked before they are used.

PyCUDA, CuPy, Numba and PyTorch arrays have `__cuda_array_interface__`, a dictionary with an address. A wrong address
leads to a crash or to someone else's data, so only plain arrays are accepted.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from selva_bundle.errors import RequestError
from selva_runtime.backends.gpu.device_array import DeviceArray, MemoryPool


@dataclass(frozen=True, kw_only=True)
class ForeignArray:
    """A contiguous array in another library's memory."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None
    """The stream in which the values are still being computed. None if they are complete."""


def is_foreign(array: object) -> bool:
    """Whether this is an array on a GPU."""
    return not isinstance(array, (np.ndarray, DeviceArray)) and hasattr(array, "__cuda_array_interface__")


def adopt(pool: MemoryPool, array: Any) -> DeviceArray:
    """Use another library's array without a copy. Work that is queued from now on can read it.

    Raises:
        RequestError: the array is not plain, or not in the memory of this device.
    """
    foreign = parse(array)
    pool.device.check_pointer(foreign.pointer)
    if foreign.stream is not None:
        pool.device.after(foreign.stream)
    return pool.view(foreign.pointer, foreign.shape, foreign.dtype, owner=array)


def parse(array: Any) -> ForeignArray:
    """Read an array's `__cuda_array_interface__`, version 2 or 3.

    Raises:
        RequestError: it cannot be read, or the array is empty, masked, byte-swapped or not contiguous.
    """
    interface = array.__cuda_array_interface__
    try:
        shape = tuple(operator.index(size) for size in interface["shape"])
        dtype = np.dtype(str(interface["typestr"]))
        pointer = operator.index(interface["data"][0])
        strides, version = interface.get("strides"), operator.index(interface["version"])
        stream = None if interface.get("stream") is None else operator.index(interface["stream"])
    except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RequestError(f"the array's __cuda_array_interface__ cannot be read ({reason})") from error
    if version < 2 or interface.get("mask") is not None or dtype.hasobject or not dtype.isnative:
        raise RequestError("the array is masked, byte-swapped or in an old format; pass a plain one")
    if not shape or any(size <= 0 for size in shape) or pointer <= 0 or pointer % dtype.itemsize:
        raise RequestError(f"the array has the shape {shape} at the address {pointer:#x}; pass one with values")
    if strides is not None and tuple(strides) != _contiguous_strides(shape, dtype.itemsize):
        raise RequestError("the array is not contiguous; pass a contiguous copy (ascontiguousarray, contiguous())")
    if stream is not None and stream <= 0:
        raise RequestError(f"the array names the stream {stream}, which the interface forbids; use 1 for the default")
    return ForeignArray(pointer=pointer, shape=shape, dtype=dtype, stream=stream)


def stream_handle(stream: Any) -> int:
    """Return the stream handle of an integer or of an object with `__cuda_stream__`.

    0 and 1 are CUDA's legacy default stream, 2 is the calling thread's. A wrong handle cannot be detected.

    Raises:
        RequestError: `stream` is neither.
    """
    try:
        if hasattr(stream, "__cuda_stream__"):
            _, stream = stream.__cuda_stream__()
        handle = operator.index(stream)
        if isinstance(stream, bool) or handle < 0:
            raise ValueError(f"{stream!r} is not a handle")
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"stream is {stream!r}; give a handle: torch stream.cuda_stream, cupy stream.ptr, pycuda stream.handle"
        ) from error
    return handle


def _contiguous_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
