"""BigVGAN (arXiv 2206.04658): log-mel spectrogram → waveform, with anti-aliased SnakeBeta activations.

Each activation runs at twice the rate: up by 2, snake, down by 2, each way with a 12-tap Kaiser-windowed sinc. The
textbook form is a depthwise transposed convolution. Here the even and odd phases of the doubled signal stay separate
and are never interleaved: two short convolutions up and two down. Signals are extended by concatenation, which TensorRT
fuses with its neighbours (it does not fuse a pad). The result is exact, and fast in every runtime.
Shapes: B batch, C channels, T samples at the level's rate. Once baked, (B, C, 1, T), because ONNX Runtime, OpenVINO and
TensorRT have better kernels for it.
"""

from __future__ import annotations

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from selva_ref.model.official import OfficialModule
from selva_ref.model.presets import AudioConfig

RESIDUAL_KERNELS = (3, 7, 11)
DILATIONS = (1, 3, 5)
TAPS = 12
LARGEST_FLAT_STRIDE = 16
"""Largest stride for the 2-D form of a transposed convolution: above it, a CPU library can take a minute to prepare it.
"""


def lowpass_filter() -> Tensor:
    """12-tap Kaiser-windowed sinc, (12,) float32: cutoff 0.25, transition half width 0.3, sum 1."""
    attenuation = 2.285 * (TAPS // 2 - 1) * math.pi * 4 * 0.3 + 7.95
    window = torch.kaiser_window(TAPS, periodic=False, beta=0.1102 * (attenuation - 8.7))
    time = torch.arange(-TAPS // 2, TAPS // 2) + 0.5
    taps = 2 * 0.25 * window * torch.sinc(2 * 0.25 * time)
    return taps / taps.sum()


class SnakeBeta(nn.Module):
    """x + sin^2(exp(alpha) x) / (exp(beta) + 1e-9) per channel, written with sin^2 = (1 - cos 2)/2, in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        beside = (-1, *[1] * (x.ndim - 2))
        rate = (2 * self.alpha.float().exp()).view(beside)
        half = (0.5 / (self.beta.float().exp() + 1e-9)).view(beside)
        y = x.float()
        return (y + half - half * (rate * y).cos()).to(x.dtype)


class Activation(nn.Module):
    """SnakeBeta at twice the sampling rate: upsamples by two, activates, downsamples by two."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.act = SnakeBeta(channels)
        taps = lowpass_filter().flip(0).expand(channels, 1, -1)
        # The flipped taps 0, 2, ... are taps 11, 9, ... Going up they make the even phase. Going down (with the same
        # symmetric filter) they apply to the odd one. A seventh tap of zero lets both phases use one extended signal.
        even, odd = taps[..., 0::2], taps[..., 1::2]
        self.register_buffer("up_even", F.pad(2 * even, (0, 1)), persistent=False)
        self.register_buffer("up_odd", F.pad(2 * odd, (1, 0)), persistent=False)
        self.register_buffer("down_even", odd.contiguous(), persistent=False)
        self.register_buffer("down_odd", even.contiguous(), persistent=False)

    def bake(self) -> None:
        """Switches the activation to (B, C, 1, T)."""
        for name in ("up_even", "up_odd", "down_even", "down_odd"):
            setattr(self, name, getattr(self, name)[:, :, None].clone())

    def _depthwise(self, x: Tensor, taps: Tensor) -> Tensor:
        convolve = F.conv1d if taps.ndim == 3 else F.conv2d
        return convolve(x, taps, groups=self.channels)

    def forward(self, x: Tensor) -> Tensor:
        first, last = x[..., :1], x[..., -1:]
        x = torch.cat((first, first, first, x, last, last, last), dim=-1)
        even = self.act(self._depthwise(x, self.up_even))
        odd = self.act(self._depthwise(x, self.up_odd))
        first, last = even[..., :1], odd[..., -1:]
        even = torch.cat((first, first, even, last, last, last), dim=-1)
        odd = torch.cat((first, first, first, odd, last, last), dim=-1)
        return self._depthwise(even, self.down_even) + self._depthwise(odd, self.down_odd)


def _conv(n_in: int, n_out: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Module:
    padding = dilation * (kernel - 1) // 2
    return weight_norm(nn.Conv1d(n_in, n_out, kernel, dilation=dilation, padding=padding, bias=bias))


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
            self.ups.append(nn.ModuleList([weight_norm(up)]))
            width //= 2
            self.resblocks.extend(ResidualBlock(width, k) for k in RESIDUAL_KERNELS)
        self.activation_post = Activation(width)
        self.conv_post = _conv(width, 1, 7, bias=config.vocoder_tanh)

    def load_official(self, state_dict: dict[str, Tensor]) -> Vocoder:
        """Loads weights under either naming of weight norm, nested under `generator` or not.

        Raises:
            CheckpointError: a name is missing, unexpected or has the wrong shape.
        """
        nested = state_dict.get("generator", state_dict)
        modern = {
            name.replace(".weight_g", ".parametrizations.weight.original0").replace(
                ".weight_v", ".parametrizations.weight.original1"
            ): value
            for name, value in nested.items()
        }
        return super().load_official(modern)

    def forward(self, mel: Tensor) -> Tensor:
        x = mel.to(self.dtype)
        flat = self.conv_pre.weight.ndim == 4
        x = self.conv_pre(x[:, :, None] if flat else x)
        per_level = len(RESIDUAL_KERNELS)
        for level, (up,) in enumerate(self.ups):
            x = up(x) if x.ndim == up.weight.ndim else up(x.squeeze(2))[:, :, None]
            blocks = self.resblocks[level * per_level : (level + 1) * per_level]
            x = sum(block(x) for block in blocks) / per_level
        x = self.conv_post(self.activation_post(x)).float()
        x = x.tanh() if self.config.vocoder_tanh else x.clamp(-1.0, 1.0)
        return x.squeeze(2) if flat else x

    def remove_weight_norm(self) -> Self:
        """Folds the weight norms into plain weights."""
        for module in self.modules():
            if is_parametrized(module, "weight"):
                remove_parametrizations(module, "weight")
        return self

    def bake(self) -> Self:
        """Folds the weight norms and gives each convolution a second axis of size one."""
        self.remove_weight_norm()
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and module.stride[0] <= LARGEST_FLAT_STRIDE:
                self.set_submodule(name, _two_dimensional(module))
        return super().bake()


def _two_dimensional(conv: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    """Converts a convolution to the same convolution of (B, C, 1, T)."""
    kind = nn.ConvTranspose2d if isinstance(conv, nn.ConvTranspose1d) else nn.Conv2d
    (kernel,), (stride,), (padding,), (dilation,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    with torch.device("meta"):
        flat = kind(
            conv.in_channels,
            conv.out_channels,
            (1, kernel),
            stride=(1, stride),
            padding=(0, int(padding)),
            dilation=(1, dilation),
            bias=conv.bias is not None,
        )
    flat.weight, flat.bias = nn.Parameter(conv.weight.detach()[:, :, None].clone()), conv.bias
    return flat
