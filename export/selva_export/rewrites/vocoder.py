"""The vocoder's deployment form.

- Weight norms are folded into plain weights.
- Tensors are (B, C, 1, T), because ONNX Runtime, OpenVINO and TensorRT have better kernels for two dimensions.
- The even and odd phases of the doubled rate stay separate and are never interleaved: two short convolutions up and two
  down, instead of a depthwise transposed one. Signals are extended by concatenation, which TensorRT fuses with its
  neighbours (it does not fuse a pad).
- sin^2 is (1 - cos 2)/2.

Shapes: B batch, C channels, T samples at the level's rate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from selva_export.rewrites.layers import replace
from selva_ref.model.vocoder import RESIDUAL_KERNELS, Activation, SnakeBeta, Vocoder

LARGEST_FLAT_STRIDE = 16
"""Largest stride for the 2-D form of a transposed convolution: above it, a CPU library can take a minute to prepare it.
"""


def rewrite(root: nn.Module) -> None:
    """Rewrites every vocoder below `root`."""
    replace(root, Vocoder, GraphVocoder)


class GraphSnakeBeta(nn.Module):
    """`SnakeBeta` with a cosine, on (B, C, 1, T)."""

    def __init__(self, plain: SnakeBeta) -> None:
        super().__init__()
        self.alpha, self.beta = plain.alpha, plain.beta

    def forward(self, x: Tensor) -> Tensor:
        rate = (2 * self.alpha.float().exp()).view(-1, 1, 1)
        half = (0.5 / (self.beta.float().exp() + 1e-9)).view(-1, 1, 1)
        y = x.float()
        return (y + half - half * (rate * y).cos()).to(x.dtype)


class PolyphaseActivation(nn.Module):
    """`Activation` as two phases."""

    def __init__(self, plain: Activation) -> None:
        super().__init__()
        self.channels = plain.channels
        self.act = GraphSnakeBeta(plain.act)
        taps = plain.taps.flip(0).expand(plain.channels, 1, 1, -1)
        # The flipped taps 0, 2, ... are taps 11, 9, ... Going up they make the even phase. Going down (with the same
        # symmetric filter) they apply to the odd one. A seventh tap of zero lets both phases use one extended signal.
        even, odd = taps[..., 0::2], taps[..., 1::2]
        self.up_even = nn.Buffer(F.pad(2 * even, (0, 1)), persistent=False)
        self.up_odd = nn.Buffer(F.pad(2 * odd, (1, 0)), persistent=False)
        self.down_even = nn.Buffer(odd.contiguous(), persistent=False)
        self.down_odd = nn.Buffer(even.contiguous(), persistent=False)

    def _depthwise(self, x: Tensor, taps: Tensor) -> Tensor:
        return F.conv2d(x, taps, groups=self.channels)

    def forward(self, x: Tensor) -> Tensor:
        first, last = x[..., :1], x[..., -1:]
        x = torch.cat((first, first, first, x, last, last, last), dim=-1)
        even = self.act(self._depthwise(x, self.up_even))
        odd = self.act(self._depthwise(x, self.up_odd))
        first, last = even[..., :1], odd[..., -1:]
        even = torch.cat((first, first, even, last, last, last), dim=-1)
        odd = torch.cat((first, first, first, odd, last, last), dim=-1)
        return self._depthwise(even, self.down_even) + self._depthwise(odd, self.down_odd)


class GraphVocoder(nn.Module):
    """`Vocoder` of two-dimensional convolutions and polyphase activations."""

    def __init__(self, plain: Vocoder) -> None:
        super().__init__()
        self.tanh = plain.config.vocoder_tanh
        fold_weight_norms(plain)
        replace(plain, Activation, PolyphaseActivation)
        replace(plain, nn.Conv1d, _two_dimensional)
        replace(plain, nn.ConvTranspose1d, _two_dimensional)
        self.conv_pre, self.ups, self.resblocks = plain.conv_pre, plain.ups, plain.resblocks
        self.activation_post, self.conv_post = plain.activation_post, plain.conv_post

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.to(next(self.conv_pre.parameters()).dtype)[:, :, None])
        per_level = len(RESIDUAL_KERNELS)
        for level, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[level * per_level : (level + 1) * per_level]
            x = sum(block(x) for block in blocks) / per_level
        wave: Tensor = self.conv_post(self.activation_post(x)).float()
        return (wave.tanh() if self.tanh else wave.clamp(-1.0, 1.0)).squeeze(2)


def fold_weight_norms(vocoder: nn.Module) -> None:
    """Folds the weight norms into plain weights."""
    for module in vocoder.modules():
        if is_parametrized(module, "weight"):
            remove_parametrizations(module, "weight")


class SqueezedUp(nn.Module):
    """A one-dimensional transposed convolution of (B, C, 1, T)."""

    def __init__(self, plain: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.weight, self.bias = plain.weight, plain.bias
        self.stride, self.padding = plain.stride[0], int(plain.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        up = F.conv_transpose1d(x.squeeze(2), self.weight, self.bias, self.stride, self.padding)
        return up[:, :, None]


def _two_dimensional(conv: nn.Conv1d | nn.ConvTranspose1d) -> nn.Module:
    """Converts a convolution to the same convolution of (B, C, 1, T)."""
    assert not isinstance(conv.padding, str)
    (kernel,), (stride,), (padding,), (dilation,) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    if isinstance(conv, nn.ConvTranspose1d) and stride > LARGEST_FLAT_STRIDE:
        return SqueezedUp(conv)
    kind = nn.ConvTranspose2d if isinstance(conv, nn.ConvTranspose1d) else nn.Conv2d
    with torch.device("meta"):
        flat = kind(
            conv.in_channels,
            conv.out_channels,
            (1, kernel),
            stride=(1, stride),
            padding=(0, padding),
            dilation=(1, dilation),
            bias=conv.bias is not None,
        )
    flat.weight, flat.bias = nn.Parameter(conv.weight.detach()[:, :, None].clone()), conv.bias
    return flat
