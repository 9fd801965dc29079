"""Deterministic weights from names alone, for latency work and parity tests without checkpoints.

The same official name and shape give the same float32 values in any process. The oracle data under `tests/data` was
computed with this rule.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

_EMBEDDINGS = {
    "cls_token",
    "pos_embed",
    "temp_embed",
    "sup_text_feat",
    "sync_pos_emb",
    "empty_string_feat",
    "empty_clip_feat",
    "empty_sync_feat",
    "latent_mean",
}


def normal(key: str, *shape: int) -> np.ndarray:
    """Standard normal float32 values that depend only on `key`."""
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))
    return generator.standard_normal(shape, dtype=np.float32)


def _gain_and_offset(leaf: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """A parameter is `offset + gain * normal`: scales are near one, biases small, matrices of unit gain."""
    if leaf in _EMBEDDINGS:
        return 0.5, 0.0
    if leaf == "original0":  # the gain of a weight-normalised convolution
        return 0.07, 0.7
    if leaf in ("learnable_gain", "alpha", "beta"):
        return 0.1, 0.0
    if leaf == "weight" and len(shape) == 1:
        return 0.1, 1.0
    if len(shape) <= 1:
        return 0.05, 0.0
    return 1 / math.sqrt(math.prod(shape[1:])), 0.0


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of the parameter called `name`."""
    x = normal(name, *shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "latent_std":
        out: np.ndarray = 1 + np.float32(0.1) * np.abs(x)
        return out
    gain, offset = _gain_and_offset(leaf, shape)
    if name.endswith("SelfAttention.q.weight"):
        gain /= 8  # T5 does not scale its scores; its own initialiser also makes queries smaller by d^-0.5
    return np.float32(offset) + np.float32(gain) * x


def state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Makes a state dict with the names of `module`'s parameters; buffers keep their values."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {
        name: torch.from_numpy(np.asarray(fill(name, tuple(value.shape)))) if name in parameters else value
        for name, value in module.state_dict().items()
    }
