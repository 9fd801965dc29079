"""The mel VAE: magnitude-preserving 1-D convolutions in the style of EDM2 (arXiv 2312.02696).

Stored weights are raw; each use normalises them to the effective weight.
Shapes: B batch, C channels, T frames.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import AudioConfig

DATA = Path(__file__).parents[1] / "data"
CLAMP = 256.0
SILU_SCALE = 1 / 0.596
"""Factor that gives SiLU's output unit variance."""
KEPT, ADDED = 0.7 / math.sqrt(0.7**2 + 0.3**2), 0.3 / math.sqrt(0.7**2 + 0.3**2)
"""Weights of the shortcut and of the branch added to it; the weighted sum keeps unit variance."""


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """x / (1e-4 + rms(x)) over `dim`, in float32  (EDM2, appendix B)."""
    y = x.float()
    return (y / (1e-4 + y.square().mean(dim, keepdim=True).sqrt())).to(x.dtype)


class MPConv1d(nn.Module):
    """Convolution with a magnitude-preserving weight and no bias; the length does not change."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel))

    def effective_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """unit(w) per output channel / sqrt(fan in), times `gain`."""
        return unit(self.weight, (1, 2)) / math.sqrt(self.weight[0].numel()) * gain

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return F.conv1d(x, self.effective_weight(gain), padding=self.weight.shape[-1] // 2)


class ResidualBlock(nn.Module):
    """Normalises the input, applies two activated convolutions, and adds the shortcut with fixed weights."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(n_in, n_out, 3)
        self.conv2 = MPConv1d(n_out, n_out, 3)
        if n_in != n_out:
            self.nin_shortcut = MPConv1d(n_in, n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = unit(x, 1)
        h = self.conv2(F.silu(self.conv1(F.silu(x), SILU_SCALE)), SILU_SCALE * ADDED)
        y: Tensor = (self.nin_shortcut(x, KEPT) if hasattr(self, "nin_shortcut") else KEPT * x) + h
        return y


class Attention(nn.Module):
    """Single-head attention over time. q, k and v have unit magnitude; their index is innermost in the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = MPConv1d(width, 3 * width, 1)
        self.proj_out = MPConv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b (c three) t -> three b 1 t c", three=3)
        out = F.scaled_dot_product_attention(unit(q, -1), unit(k, -1), unit(v, -1))
        y: Tensor = KEPT * x + self.proj_out(rearrange(out, "b 1 t c -> b c t"), ADDED)
        return y


class Downsample(nn.Module):
    """1x1 convolution, average of frame pairs, 1x1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = MPConv1d(width, width, 1)
        self.conv2 = MPConv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.avg_pool1d(self.conv1(x), 2))
        return y


class Upsample(nn.Module):
    """Repeats every frame, then applies a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = MPConv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x.repeat_interleave(2, dim=-1))
        return y


class Level(nn.Module):
    """Residual blocks of one width, then an optional change of rate."""

    def __init__(self, n_in: int, n_out: int, blocks: int, resample: str | None = None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(n_in if i == 0 else n_out, n_out) for i in range(blocks))
        self.resample = resample
        if resample == "down":
            self.downsample = Downsample(n_out)
        elif resample == "up":
            self.upsample = Upsample(n_out)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x).clamp(-CLAMP, CLAMP)
        return getattr(self, f"{self.resample}sample")(x) if self.resample else x


class Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width)
        self.attn_1 = Attention(width)
        self.block_2 = ResidualBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x))).clamp(-CLAMP, CLAMP)
        return y


class Encoder(nn.Module):
    """Normalised mel (B, bands, 2T) → mean and log-variance (B, 2Z, T)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        w = config.vae_width
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv1d(config.mel_bands, w, 3)
        self.down = nn.ModuleList([Level(w, w, 2, "down"), Level(w, 2 * w, 2), Level(2 * w, 4 * w, 2)])
        self.mid = Middle(4 * w)
        self.conv_out = MPConv1d(4 * w, 2 * config.latent_width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        y: Tensor = self.conv_out(F.silu(self.mid(x)), (self.learnable_gain + 1) * SILU_SCALE)
        return y


class Decoder(nn.Module):
    """Latent (B, Z, T) → normalised mel (B, bands, 2T). Levels run in order 2, 1, 0; the rate doubles after level 1."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        w = config.vae_width
        self.learnable_gain = nn.Parameter(torch.zeros(()))
        self.conv_in = MPConv1d(config.latent_width, 4 * w, 3)
        self.mid = Middle(4 * w)
        self.up = nn.ModuleList([Level(2 * w, w, 3), Level(4 * w, 2 * w, 3, "up"), Level(4 * w, 4 * w, 3)])
        self.conv_out = MPConv1d(w, config.mel_bands, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        y: Tensor = self.conv_out(F.silu(x), (self.learnable_gain + 1) * SILU_SCALE)
        return y


class VAE(OfficialModule):
    """Log-mel spectrogram ↔ latent."""

    optional_names = ("data_mean", "data_std")

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        mean, std = np.zeros(config.mel_bands), np.ones(config.mel_bands)
        if config.mel_statistics:
            stored = np.load(DATA / f"{config.mel_statistics}.npz")
            mean, std = stored["data_mean"], stored["data_std"]
        self.data_mean = nn.Buffer(torch.tensor(mean, dtype=torch.float32)[None, :, None])
        self.data_std = nn.Buffer(torch.tensor(std, dtype=torch.float32)[None, :, None])
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel (B, bands, 2T) → mean and standard deviation of the posterior, each (B, Z, T)."""
        normalised = ((mel - self.data_mean) / self.data_std).to(self.dtype)
        mean, log_variance = self.encoder(normalised).chunk(2, dim=1)
        return mean, (log_variance.clamp(-30.0, 20.0) / 2).exp()

    def decode(self, z: Tensor) -> Tensor:
        """Latent (B, Z, T) → log-mel (B, bands, 2T)."""
        y: Tensor = self.decoder(z.to(self.dtype)).float() * self.data_std.float() + self.data_mean.float()
        return y
