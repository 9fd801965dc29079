"""Compiles the runtime's kernels.cu to the PTX that stands beside it. No GPU is needed.

    pip install cuda-python 'nvidia-cuda-nvrtc==13.0.*' && python -m selva_bench.gpu.compile_kernels

NVRTC 13.0 writes PTX that the oldest driver for CUDA 13 reads. Compute capability 7.5 is the oldest that CUDA 13 knows,
and the driver compiles its PTX for every newer GPU. Products and sums are not fused, so that the kernels compute what
NumPy does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from cuda.bindings import nvrtc

from selva_bench.options import BenchError
from selva_runtime.backends.gpu.cuda_kernels import PTX

SOURCE = PTX.with_suffix(".cu")
OPTIONS = (b"--gpu-architecture=compute_75", b"--fmad=false")


def first_line(source: Path = SOURCE) -> str:
    """Returns the comment at the top of the PTX, which says what it was made from."""
    return f"// {source.name}, SHA-256 {hashlib.sha256(source.read_bytes()).hexdigest()}\n"


def compile_source(source: Path = SOURCE) -> str:
    """Returns the PTX of a source.

    Raises:
        BenchError: NVRTC does not take it.
    """
    program = _call("nvrtcCreateProgram", source.read_bytes(), source.name.encode(), 0, [], [])
    _call("nvrtcCompileProgram", program, len(OPTIONS), list(OPTIONS))
    code = b" " * int(_call("nvrtcGetPTXSize", program))
    _call("nvrtcGetPTX", program, code)
    return first_line(source) + code.rstrip(b"\0").decode("ascii").strip() + "\n"


def _call(function: str, *arguments: Any) -> Any:
    error, *values = getattr(nvrtc, function)(*arguments)
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BenchError(f"{function} failed: {error.name}")
    return values[0] if values else None


if __name__ == "__main__":
    PTX.write_text(compile_source(), encoding="ascii")
