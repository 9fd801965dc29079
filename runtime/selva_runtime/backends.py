"""The backends by name, and which one `auto` takes. An explicit choice is met or refused, never replaced."""

from __future__ import annotations

from collections.abc import Callable

from .bundle import Bundle
from .cuda_device import CudaDevice
from .device_array import Space
from .errors import BackendError
from .executor import Executor

_FASTEST_FIRST = ("tensorrt", "cuda")


def best(bundle: Bundle, threads: int | None) -> Executor:
    """The fastest backend that runs this bundle here. Its reason says what was passed over, and why."""
    try:
        CudaDevice()
    except BackendError as error:
        return _cpu(bundle, threads, f"no GPU backend: {error}")
    refused: list[str] = []
    for name in _FASTEST_FIRST:
        try:
            return MAKERS[name](bundle, threads, "; ".join(["the fastest that runs here", *refused]))
        except BackendError as error:
            refused.append(f"{name}: {error}")
    return _cpu(bundle, threads, "; ".join(refused))


def _cpu(bundle: Bundle, threads: int | None, reason: str) -> Executor:
    from .onnx_cpu import OnnxCpuExecutor

    return OnnxCpuExecutor(bundle, threads=threads, reason=reason)


def _cuda(bundle: Bundle, _threads: int | None, reason: str) -> Executor:
    from .device_executor import DeviceExecutor
    from .onnx_device import OnnxGraphs

    device = CudaDevice()
    graphs = OnnxGraphs(bundle, device)
    return DeviceExecutor(bundle, Space(device), graphs, backend="cuda", reason=f"{reason}; on {device.name}")


def _tensorrt(bundle: Bundle, _threads: int | None, reason: str) -> Executor:
    from .device_executor import DeviceExecutor
    from .tensorrt_graphs import open_graphs

    device = CudaDevice()
    space = Space(device)
    graphs = open_graphs(bundle, device, space)
    what = f"{reason}; {graphs.library} on {device.name}"
    return DeviceExecutor(bundle, space, graphs, backend="tensorrt", reason=what)


MAKERS: dict[str, Callable[[Bundle, int | None, str], Executor]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}
"""Each takes the bundle, the number of threads and the reason for the choice; raises `BackendError`."""
