"""The text towers' deployment form: the weight is the left factor of each linear layer.

A tower is loaded for one run, so nothing is gained by packing its weights beforehand, and packing the right factor of
a product is part of every product. The few tokens of a prompt are packed much faster than a weight.

Shapes: B prompts, L tokens, D inputs, E outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selva_export.rewrites.layers import replace
from selva_ref.model.text import ClipTower, Float32Linear, T5Tower


def rewrite(root: nn.Module) -> None:
    """Rewrites every linear layer of the text towers below `root`."""
    for tower in list(root.modules()):
        if isinstance(tower, T5Tower | ClipTower):
            replace(tower, nn.Linear, GraphLinear)


class GraphLinear(nn.Module):
    """`Linear` as (W xᵀ)ᵀ + b. `Float32Linear` stays in float32."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.dtype = torch.float32 if isinstance(plain, Float32Linear) else None

    def forward(self, x_BLD: Tensor) -> Tensor:
        dtype = self.dtype or x_BLD.dtype
        y_BLE = (self.weight.to(dtype) @ x_BLD.to(dtype).mT).mT
        return y_BLE if self.bias is None else y_BLE + self.bias
