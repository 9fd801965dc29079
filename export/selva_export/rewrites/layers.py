"""What the rewrites share: replacing modules, the order of stacked projections, and attention that engines fuse.

Shapes: B batch, H heads, N queries, M keys, d head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

Plain = TypeVar("Plain", bound=nn.Module)


def replace(root: nn.Module, kind: type[Plain], make: Callable[[Plain], nn.Module]) -> None:
    """Replaces every module of class `kind` below `root` by what `make` makes of it, under the same name."""
    for name, module in list(root.named_modules()):
        if isinstance(module, kind):
            root.set_submodule(name, make(module))


@torch.no_grad()
def deinterleave(linear: nn.Linear, heads: int, parts: int) -> None:
    """Reorders the outputs of a stacked projection from (head, d, part) to (part, head, d), in place."""
    for rows in (linear.weight, linear.bias):
        rows.copy_(rearrange(rows, "(h d part) ... -> (part h d) ...", h=heads, part=parts).clone())


def attend(q_BHNd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of queries that are already scaled, (B, H, N, d); `mask` is true where a key is visible.

    Engines fuse this MatMul-Softmax-MatMul. The softmax is float32 in a float16 graph too.
    """
    scores = (q_BHNd @ k_BHMd.transpose(-1, -2)).float()
    if mask is not None:
        scores = torch.where(mask, scores, torch.full((), -1e9))
    return scores.softmax(-1).to(v_BHMd.dtype) @ v_BHMd
