"""The backends by name, and how `auto` chooses one. A backend that the user names is never replaced by another."""

from __future__ import annotations

import platform
from collections.abc import Callable

from selva_bundle.bundle import Bundle
from selva_bundle.errors import BackendError
from selva_runtime.backends.executor import EXACT, CpuSettings, Executor
from selva_runtime.backends.gpu.cuda_device import CudaDevice, has_nvidia_gpu
from selva_runtime.backends.gpu.device_array import MemoryPool

_ON_GPU = ("tensorrt", "cuda")
"""Fastest first."""
_ANY_PRECISION = ("openvino",)
_SLOW = "this bundle is fp32, which is slow on a GPU: export it with --precision fp16"
TITLES = {
    "cpu": "CPU",
    "openvino": "CPU with OpenVINO",
    "cuda": "NVIDIA GPU with CUDA",
    "tensorrt": "NVIDIA GPU with TensorRT",
}
"""Names of the backends for a person."""
_X86 = {"x86_64", "amd64"}
_MIN_COMPILED_BYTES = 200_000_000
"""For a smaller bundle, such as the toy demo, OpenVINO takes longer to compile than it saves on a stem."""


def make_executor(bundle: Bundle, backend: str, threads: int | None, compute_precision: str = EXACT) -> Executor:
    """Make the executor called `backend`. "auto" takes the fastest that runs here.

    Raises:
        BackendError: the backend is unknown, not installed or cannot run here.
        BundleError: a file was altered.
        RequestError: `threads` or `compute_precision` is out of range.
    """
    if backend not in ("auto", *BACKENDS):
        raise BackendError(f"unknown backend {backend!r}; choose one of auto, {', '.join(BACKENDS)}")
    settings = CpuSettings(threads=threads, compute_precision=compute_precision)
    if backend == "auto":
        return best(bundle, settings)
    return make(backend, bundle, settings, "asked for")


def make(name: str, bundle: Bundle, settings: CpuSettings, reason: str) -> Executor:
    """Make the executor of this name. `reason` says why it was chosen.

    Raises:
        BackendError: the backend is not installed, cannot run here or does not have the compute precision.
        BundleError: a file was altered.
    """
    if settings.compute_precision != EXACT and name not in _ANY_PRECISION:
        raise BackendError(
            f"the {name} backend cannot compute in {settings.compute_precision}; choose the backend openvino "
            "(pip install 'selva-deploy[openvino]'), or the precision exact"
        )
    executor = MAKERS[name](bundle, settings, reason)
    if name in _ON_GPU and bundle.manifest.precision == "fp32":
        executor.notice = f"{TITLES[name]} ({_SLOW})"
    return executor


def best(bundle: Bundle, settings: CpuSettings) -> Executor:
    """Make the fastest executor that runs this bundle here.

    Its `reason` says which backends were not used and why. Its `notice` says in short what a user should know or can
    fix.

    Raises:
        BackendError: no backend can run here.
        BundleError: a file was altered.
    """
    if settings.compute_precision != EXACT:
        unused = "; the NVIDIA GPU is not used, choose the precision exact for it" if has_nvidia_gpu() else ""
        reason = f"it computes in {settings.compute_precision}"
        return _with_notice(make("openvino", bundle, settings, reason), f"{reason}{unused}")
    try:
        CudaDevice()
    except BackendError as error:
        short = f"the NVIDIA GPU cannot be used: {error}" if has_nvidia_gpu() else "no NVIDIA GPU found"
        return _with_notice(_best_on_cpu(bundle, settings, f"no GPU backend: {error}"), short)
    refused: list[str] = []
    for name in _ON_GPU:
        try:
            executor = make(name, bundle, settings, "; ".join(["the fastest backend that runs here", *refused]))
            short = f"the faster {refused[0]}" if refused else "the fastest backend here"
            return _with_notice(executor, f"{short}; {_SLOW}" if executor.notice else short)
        except BackendError as error:
            refused.append(f"{name}: {error}")
    short = f"the NVIDIA GPU cannot be used: {'; '.join(refused)}"
    return _with_notice(_best_on_cpu(bundle, settings, "; ".join(refused)), short)


def _with_notice(executor: Executor, short: str) -> Executor:
    executor.notice = f"{TITLES[executor.backend]} ({short})"
    return executor


def _best_on_cpu(bundle: Bundle, settings: CpuSettings, why: str) -> Executor:
    """Make an OpenVINO executor where it was measured to be faster: for a full-size bundle on x86."""
    if platform.machine().lower() not in _X86 or _bytes(bundle) < _MIN_COMPILED_BYTES:
        return make("cpu", bundle, settings, why)
    try:
        return make("openvino", bundle, settings, f"{why}; OpenVINO is faster than ONNX Runtime on x86")
    except BackendError as error:
        return make("cpu", bundle, settings, f"{why}; slower than openvino: {error}")


def _bytes(bundle: Bundle) -> int:
    return sum(file.bytes for file in bundle.manifest.files.values())


def _cpu(bundle: Bundle, settings: CpuSettings, reason: str) -> Executor:
    from selva_runtime.backends.onnx_cpu import OnnxCpuExecutor

    return OnnxCpuExecutor(bundle, threads=settings.threads, reason=reason)


def _openvino(bundle: Bundle, settings: CpuSettings, reason: str) -> Executor:
    from selva_runtime.backends.openvino.executor import OpenVinoExecutor

    return OpenVinoExecutor(
        bundle, threads=settings.threads, compute_precision=settings.compute_precision, reason=reason
    )


def _cuda(bundle: Bundle, _settings: CpuSettings, reason: str) -> Executor:
    from selva_runtime.backends.gpu.executor import DeviceExecutor
    from selva_runtime.backends.gpu.onnx_graphs import OnnxGraphs

    device = CudaDevice()
    graphs = OnnxGraphs(bundle, device)
    what = f"{reason}; on {device.name}{graphs.shortfall}"
    return DeviceExecutor(bundle, MemoryPool(device), graphs, backend="cuda", reason=what)


def _tensorrt(bundle: Bundle, _settings: CpuSettings, reason: str) -> Executor:
    from selva_runtime.backends.gpu.executor import DeviceExecutor
    from selva_runtime.backends.gpu.tensorrt_graphs import open_graphs

    device = CudaDevice()
    pool = MemoryPool(device)
    graphs = open_graphs(bundle, device, pool)
    what = f"{reason}; {graphs.library} on {device.name}"
    return DeviceExecutor(bundle, pool, graphs, backend="tensorrt", reason=what)


MAKERS: dict[str, Callable[[Bundle, CpuSettings, str], Executor]] = {
    "cpu": _cpu,
    "openvino": _openvino,
    "cuda": _cuda,
    "tensorrt": _tensorrt,
}
"""Each function takes the bundle, the CPU settings and the reason for the choice. It raises `BackendError`."""
BACKENDS = tuple(MAKERS)
