"""Waveform → log-mel spectrogram, as used to train the VAE and the vocoder.

Slaney mel filters on the magnitude of an uncentred STFT (the convention of HiFi-GAN and BigVGAN).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from selva_ref.model.presets import AudioConfig


class MelSpectrogram(nn.Module):
    """Mono waveform (B, n) in [-1, 1] → log-mel (B, bands, n // hop)."""

    window: Tensor
    filters: Tensor

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        bank = mel_filter_bank(
            num_frequency_bins=config.n_fft // 2 + 1,
            num_mel_filters=config.mel_bands,
            min_frequency=0.0,
            max_frequency=config.mel_fmax_hz,
            sampling_rate=config.sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("filters", torch.tensor(bank.T, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)

    def forward(self, wave_BN: Tensor) -> Tensor:
        c = self.config
        pad = (c.n_fft - c.hop) // 2
        wave = F.pad(wave_BN.clamp(-1, 1)[:, None], (pad, pad), mode="reflect")[:, 0]
        spectrum = torch.stft(wave, c.n_fft, c.hop, window=self.window, center=False, return_complex=True)
        magnitude = (spectrum.real.square() + spectrum.imag.square() + 1e-9).sqrt()
        mel = (self.filters @ magnitude).clamp(min=1e-5)
        return mel.log10() if c.log10 else mel.log()
