"""Describes the machine: enough to judge the numbers, but nothing that identifies the machine or its owner."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from selva_runtime.backends.cores import usable_cores

_LIBRARIES = (
    "selva-deploy",
    "numpy",
    "av",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_rtx_cu13",
    "cuda-python",
    "torch",
)


_INSTRUCTION_SETS = {
    "amx": ("amx_tile", "amx_bf16"),
    "avx512-bf16": ("avx512f", "avx512_bf16"),
    "avx512": ("avx512f",),
    "avx2": ("avx2", "fma"),
}
"""Kinds of x86 CPUs that differ most in speed, the fastest first: kind → flags in /proc/cpuinfo."""


def describe() -> dict[str, Any]:
    """Hardware, operating system and library versions."""
    return {
        "cpu": cpu_model(),
        "cpu_kind": cpu_kind(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "gpu": gpu_query("name"),
        "gpu_driver": gpu_query("driver_version"),
        "os": _os_name(),
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := version(name))},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def gpu_used_bytes() -> int | None:
    """Memory in use on the first GPU, by all processes; None if there is no GPU."""
    used = gpu_query("memory.used")
    return int(used.split()[0]) << 20 if used and used.split()[0].isdecimal() else None


def gpu_query(field: str) -> str | None:
    """Asks nvidia-smi for a field of the first GPU; None if that fails."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(answer.stdout.splitlines()), "").strip() or None


def cpu_model() -> str:
    """The name that the CPU gives itself, or its architecture."""
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_kind() -> str:
    """The best of its instruction sets that matters here, such as "avx2", or else its architecture."""
    listed = next((line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("flags")), "")
    flags = {*listed.partition(":")[2].split()}
    return next((kind for kind, needed in _INSTRUCTION_SETS.items() if flags >= {*needed}), platform.machine())


def _memory_bytes() -> int | None:
    """Memory available to the process: the machine's, or less in a container."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(machine, int(limit)) if limit.isdecimal() else machine


def _os_name() -> str:
    """Operating system without the kernel release, which reveals the host."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name} ({platform.system()} {platform.machine()})"


def version(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
