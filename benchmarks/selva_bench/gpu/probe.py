"""Looks for what the parts need, in a process of its own: a library may crash when it is loaded."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from selva_bench.gpu.setting import Emit, Setting
from selva_bench.worker import one_line
from selva_bundle.errors import BackendError
from selva_runtime.backends.gpu.cuda_device import CudaDevice

CHECKOUT = Path(__file__).parents[3]
_EXPORTERS = ("torch", "onnx", "onnxscript", "polygraphy", "onnxruntime", "selva_export")


def probe(setting: Setting, emit: Emit) -> None:
    """Reports why each need is missing, empty if it is there, and the name of the GPU."""
    on_gpu = setting.device == "cuda"
    no_cuda, name = first_gpu() if on_gpu else ("", "")
    emit("cuda-python", no_cuda)
    emit("checkout", "" if (CHECKOUT / "tests").is_dir() and find_spec("pytest") else "it needs a checkout and pytest")
    emit("onnxruntime", "" if find_spec("onnxruntime") else "ONNX Runtime is missing: pip install 'selva-deploy[gpu]'")
    for precision in ("fp32", "fp16"):
        emit(precision, _why_no_bundle(setting, precision))
    emit("cuda-graphs", "" if on_gpu else "there are no CUDA graphs without a GPU")
    emit("triton", "" if find_spec("triton") or not on_gpu else "torch.compile needs triton")
    emit("gpu", no_cuda)
    no_torch = ""
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        no_torch = f"PyTorch cannot be imported: {one_line(error)}"
    else:
        if on_gpu and not torch.cuda.is_available():
            no_torch = "this PyTorch sees no GPU"
        elif on_gpu:
            name = name or torch.cuda.get_device_name()
            emit("gpu", "")
    emit("torch", no_torch)
    emit("name", name)
    emit("engines", _why_no_engines() if on_gpu else "TensorRT needs a GPU")  # last: it loads the largest libraries


def first_gpu() -> tuple[str, str]:
    """Why cuda-python reaches no GPU, empty if it does; and the GPU's name."""
    try:
        return "", CudaDevice().name
    except BackendError as error:
        return str(error), ""


def _why_no_bundle(setting: Setting, precision: str) -> str:
    if setting.is_given:
        return "" if precision in setting.bundles else f"no {precision} bundle was given with --bundle"
    if (setting.bundles[precision] / "manifest.json").is_file():
        return ""
    missing = next((name for name in _EXPORTERS if not find_spec(name)), None)
    return f"no {precision} bundle: give one with --bundle; to export one, {missing} is missing" if missing else ""


def _why_no_engines() -> str:
    targets = import_module("selva_engines").installed_targets()
    return "" if targets else "neither TensorRT nor TensorRT-RTX is installed"
