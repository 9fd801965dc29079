"""Where the time goes: kernels by kind, as PyTorch's profiler sees them. It also sees those of other libraries."""

from __future__ import annotations

import re
from collections.abc import Iterable

from selva_bench.gpu.setting import Emit, Setting, UnavailableError, open_side

_KINDS = (
    # The first pattern that is found in a kernel's name says its kind. Triton names a kernel after what it fuses.
    ("elementwise", r"^triton_(poi|red|per)"),
    (
        "copies",
        r"memcpy|memset|_copy|copy_|copyto|catarray|aten::(cat|clone|contiguous)$|permute|transpose|nchwto|nhwcto",
    ),
    ("attention", r"flash|fmha|attention|softmax|sdpa|mha"),
    ("convolution", r"conv|fprop|dgrad|wgrad|winograd"),
    ("matmul", r"gemm|gemv|matmul|cublas|cutlass|nvjet|::(mm|bmm|addmm|baddbmm|linear)$|triton_tem|_mm"),
    (
        "elementwise",
        r"elementwise|vectorized|pointwise|reduce|norm|aten::(add|mul|div|sub|sin|cos|pow|mean|sum|silu|gelu)",
    ),
)


def kind_of(kernel: str) -> str:
    """The kind of work that a kernel, or in a dry run an operator, does."""
    return next((kind for kind, pattern in _KINDS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def by_kind(kernels: Iterable[tuple[str, float, int]]) -> dict[str, dict[str, float]]:
    """Sums (name, seconds, launches) of kernels by their kind, the slowest kind first."""
    found: dict[str, dict[str, float]] = {}
    for name, seconds, launches in kernels:
        row = found.setdefault(kind_of(name), {"seconds": 0.0, "launches": 0})
        row["seconds"] += seconds
        row["launches"] += launches
    return dict(sorted(found.items(), key=lambda item: -item[1]["seconds"]))


def profile_kernels(setting: Setting, emit: Emit, label: str) -> None:
    """Time of one warm round by kind of kernel, as PyTorch's profiler sees it. It sees those of other libraries too."""
    from torch.profiler import ProfilerActivity, profile

    side = open_side(setting, label)
    side.round()
    side.warm_up()
    on_gpu = setting.device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        side.round()
    events = [event for event in profiler.key_averages() if event.device_type.name == setting.device.upper()]
    kernels = [
        (str(event.key), (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in events
        if not getattr(event, "is_user_annotation", False)
    ]
    if not kernels:
        raise UnavailableError("the profiler saw no kernel of this library")
    emit("kinds", by_kind(kernels))
    slowest = sorted(kernels, key=lambda kernel: -kernel[1])[:20]
    emit("slowest", [{"kernel": name[:120], "seconds": seconds, "launches": count} for name, seconds, count in slowest])
