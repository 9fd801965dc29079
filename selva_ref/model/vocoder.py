"""BigVGAN (arXiv 2206.04658): log-mel spectrogram → waveform, with anti-aliased SnakeBeta activations.

Each activation runs at twice the rate: up by 2, snake, down by 2, each way with a 12-tap Kaiser-windowed sinc.
Shapes: B batch, C channels, T samples at the level's rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import AudioConfig

RESIDUAL_KERNELS = (3, 7, 11)
DILATIONS = (1, 3, 5)
TAPS = 12


def lowpass_filter() -> Tensor:
    """12-tap Kaiser-windowed sinc, (12,) float32: cutoff 0.25, transition half width 0.3, sum 1."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    time = torch.arange(-TAPS // 2, TAPS // 2) + 0.5
    taps = 2 * 0.25 * window * torch.sinc(2 * 0.25 * time)
    return taps / taps.sum()


class SnakeBeta(nn.Module):
    """x + sin^2(exp(alpha) x) / (exp(beta) + 1e-9) per channel, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        rate, size = (value.float().exp()[:, None] for value in (self.alpha, self.beta))
        y = x.float()
        return (y + (rate * y).sin().square() / (size + 1e-9)).to(x.dtype)


class Activation(nn.Module):
    """SnakeBeta at twice the sampling rate: upsamples by two, activates, downsamples by two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.act = SnakeBeta(channels)
        self.taps = nn.Buffer(lowpass_filter(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.taps.expand(self.channels, 1, -1)
        up = F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), 2 * kernel, stride=2, groups=self.channels)
        y = F.pad(self.act(up[..., 15:-15]), (5, 6), mode="replicate")
        return F.conv1d(y, kernel, stride=2, groups=self.channels)


def _conv(n_in: int, n_out: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Conv1d:
    padding = dilation * (kernel - 1) // 2
    conv: nn.Conv1d = weight_norm(nn.Conv1d(n_in, n_out, kernel, dilation=dilation, padding=padding, bias=bias))
    return conv


class ResidualBlock(nn.Module):
    """Three times x += conv(act(dilated conv(act(x))))."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(_conv(channels, channels, kernel, d) for d in DILATIONS)
        self.convs2 = nn.ModuleList(_conv(channels, channels, kernel) for _ in DILATIONS)
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(DILATIONS)))

    def forward(self, x: Tensor) -> Tensor:
        for m, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            h = conv1(self.activations[2 * m](x))
            x = x + conv2(self.activations[2 * m + 1](h))
        return x


class Vocoder(OfficialModule):
    """Log-mel (B, bands, T) → waveform (B, 1, T * hop) in [-1, 1]."""

    ignored_names = ("*.filter",)

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vocoder_width
        self.conv_pre = _conv(config.mel_bands, width, 7)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.vocoder_rates, config.vocoder_kernels, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, stride=rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.Sequential(weight_norm(up)))
            width //= 2
            self.resblocks.extend(ResidualBlock(width, k) for k in RESIDUAL_KERNELS)
        self.activation_post = Activation(width)
        self.conv_post = _conv(width, 1, 7, bias=config.vocoder_tanh)

    def load_official(self, state_dict: Mapping[str, Tensor | Mapping[str, Tensor]]) -> Self:
        """Loads weights under either naming of weight norm, nested under `generator` or not.

        Raises:
            CheckpointError: a name is missing, unexpected or has the wrong shape.
        """
        nested = cast(Mapping[str, Tensor], state_dict.get("generator", state_dict))
        modern = {
            name.replace(".weight_g", ".parametrizations.weight.original0").replace(
                ".weight_v", ".parametrizations.weight.original1"
            ): value
            for name, value in nested.items()
        }
        return super().load_official(modern)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.to(self.dtype))
        per_level = len(RESIDUAL_KERNELS)
        for level, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[level * per_level : (level + 1) * per_level]
            x = sum(block(x) for block in blocks) / per_level
        wave: Tensor = self.conv_post(self.activation_post(x)).float()
        return wave.tanh() if self.config.vocoder_tanh else wave.clamp(-1.0, 1.0)
