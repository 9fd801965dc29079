"""The GPU and the libraries, its rates, and the least time that each stage can take on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from time import perf_counter
from typing import Any

from selva_bench import machine
from selva_bench.gpu.floor import CARDS, WORK, Card, Work, floors
from selva_bench.gpu.probe import first_gpu
from selva_bench.gpu.setting import STEMS, Emit, Setting, UnavailableError, open_side
from selva_bench.worker import one_line
from selva_runtime.backends.gpu.cuda_device import CudaDevice

_MORE_LIBRARIES = ("triton", "cuda-bindings", "cuda-core", "nvidia-cudnn-cu13", "nvidia-cublas", "tensorrt_cu13")
_GPU_FIELDS = (
    "name",
    "compute_cap",
    "driver_version",
    "memory.total",
    "memory.used",
    "power.limit",
    "power.draw",
    "temperature.gpu",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "ecc.mode.current",
    "mig.mode.current",
    "pcie.link.gen.current",
    "pcie.link.width.current",
)


def describe(setting: Setting, emit: Emit) -> None:
    """Hardware and libraries, without anything that identifies the machine."""
    emit("machine", machine.describe())
    emit("more_libraries", {name: found for name in _MORE_LIBRARIES if (found := machine.version(name))})
    if setting.device == "cuda":
        emit("nvidia_smi", {field: machine.gpu_query(field) for field in _GPU_FIELDS})
        for name, ask in (("cuda_device", _ask_cuda), ("torch", _ask_torch)):
            try:
                emit(name, ask())
            except Exception as error:  # one of the two may be missing; the device class and the torch rows say more
                emit(name, one_line(error))


def _ask_cuda() -> dict[str, Any]:
    device, cuda = CudaDevice(), import_module("cuda.bindings.runtime")
    versions = {"driver_cuda": cuda.cudaDriverGetVersion()[1], "runtime_cuda": cuda.cudaRuntimeGetVersion()[1]}
    return {"name": device.name, "capability": device.capability, "free_bytes": device.free_bytes, **versions}


def _ask_torch() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {
        "name": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
    }


def floor(setting: Setting, emit: Emit) -> None:
    """The least time of each stage on this GPU, and the rates that were measured on it."""
    on_gpu = setting.device == "cuda"
    name = (first_gpu()[1] or _ask_torch()["name"]) if on_gpu else machine.cpu_model()
    measured, missing = None, ""
    try:
        measured = _measured(name, on_gpu=on_gpu)
        emit("measured", asdict(measured))
    except Exception as error:  # without PyTorch the data sheet is enough
        missing = one_line(error)
    card = CARDS.get(name) or measured
    if card is None:
        raise UnavailableError(f"{name} is not in the table of cards, and its rates cannot be measured: {missing}")
    emit("card", {**asdict(card), "source": "measured" if card is measured else "data sheet"})
    work = WORK.get((setting.preset, setting.duration_s))
    if work is None:
        operations = open_side(setting, "torch").operations()
        work = {stage: Work(flop=count) for stage, count in operations.items()}
    emit("work", {stage: asdict(each) for stage, each in work.items()})
    emit("seconds", floors(work, card, setting.steps, STEMS))


def _measured(name: str, *, on_gpu: bool) -> Card:
    """The rates of a large product and of a large copy."""
    import torch

    device, dtype, size = ("cuda", torch.bfloat16, 8192) if on_gpu else ("cpu", torch.float32, 1024)
    a = torch.randn(size, size, device=device, dtype=dtype)  # products of ones take less power, so the clock is higher
    b = torch.empty_like(a)
    source = torch.ones(2**30 if on_gpu else 2**26, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else lambda: None

    def best_s(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(10):
            wait()
            start_s = perf_counter()
            work()
            wait()
            found.append(perf_counter() - start_s)
        return min(found)

    return Card(
        name=name,
        flop_per_s=2 * size**3 / best_s(lambda: torch.mm(a, a, out=b)),
        bytes_per_s=2 * source.numel() / best_s(lambda: target.copy_(source)),
    )
