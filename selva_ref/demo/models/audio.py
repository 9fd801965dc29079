"""The demo's mel autoencoder and vocoder, trained on the sounds of its world.

Both need only sound, so clips are cheap: they just have to be synthesised. The vocoder is trained without a
discriminator. The sounds are few and clean, so spectral losses at three resolutions are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selva_ref.demo.fitting import draws
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import SAMPLES, draw_events
from selva_ref.demo.world.sounds import RATE_HZ, draw_voice, soundtrack
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.vae import VAE
from selva_ref.model.vocoder import Vocoder

KL_WEIGHT = 5e-4
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256))
"""FFT size and hop of the spectral losses, samples."""
CROP_FRAMES = 16
"""Mel frames per training crop of the vocoder: 0.26 s."""
LOUD = -3.5
"""Log10-mel above which a point counts as loud."""
LOUD_WEIGHT = 6.0
"""Weight of an error at loud points, compared with silence: most of a clip is silent, and its tones cover few bands."""
QUIET_RESIDUE = 0.2
"""Initial scale of the residual branches, as a share of the usual one, so that the linear path learns first."""


class SoundBank:
    """`clips` soundtracks of single sources and their log-mels. The kinds alternate."""

    def __init__(self, mel: MelSpectrogram, clips: int, seed: int) -> None:
        self.hop = mel.config.hop
        sounds, self.events_s = [], []
        for index in range(clips):
            rng = np.random.default_rng([seed, 77, index])
            events_s = draw_events(rng)
            sounds.append(soundtrack(KINDS[index % len(KINDS)], draw_voice(rng), events_s, SAMPLES))
            self.events_s.append(events_s)
        self.waves_BN = torch.from_numpy(np.stack(sounds))
        self.mels_BMT = torch.cat([mel(waves) for waves in self.waves_BN.split(32)])

    def mels(self, rng: np.random.Generator, batch: int) -> Tensor:
        """Random whole log-mels, (batch, bands, frames)."""
        return self.mels_BMT[rng.integers(len(self.mels_BMT), size=batch)]

    def crops(self, mels_BMT: Tensor, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Crops around random events: of `mels_BMT`, (batch, bands, 16), and of the waves, (batch, 16 hops)."""
        mels, waves = [], []
        for item in rng.integers(len(mels_BMT), size=batch):
            event = int(rng.choice(self.events_s[item]) * RATE_HZ / self.hop)
            start = int(np.clip(event - rng.integers(0, CROP_FRAMES), 0, mels_BMT.shape[-1] - CROP_FRAMES))
            mels.append(mels_BMT[item, :, start : start + CROP_FRAMES])
            waves.append(self.waves_BN[item, start * self.hop : (start + CROP_FRAMES) * self.hop])
        return torch.stack(mels), torch.stack(waves)


def set_mel_statistics(vae: VAE, mels_BMT: Tensor) -> None:
    """Sets the mean and deviation per band with which the autoencoder normalises."""
    vae.data_mean.copy_(mels_BMT.mean((0, 2))[None, :, None])
    vae.data_std.copy_(mels_BMT.std((0, 2))[None, :, None])


def vae_loss(vae: VAE, mels_BMT: Tensor, noise_seed: int) -> Tensor:
    """L1 of the log-mel with loud points weighted, plus `KL_WEIGHT` times the divergence from the unit normal."""
    mean, std = vae.encode(mels_BMT)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(noise_seed))
    error = (vae.decode(mean + std * noise) - mels_BMT).abs()
    weight = torch.where(mels_BMT > LOUD, LOUD_WEIGHT, 1.0)
    divergence = 0.5 * (mean.square() + std.square() - 1) - std.log()
    return (weight * error).mean() + KL_WEIGHT * divergence.mean()


@torch.no_grad()
def reconstructed(vae: VAE, mels_BMT: Tensor, seed: int) -> Tensor:
    """The autoencoder's reconstruction of log-mels, from a random draw of its posterior."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for mels in mels_BMT.split(32):
        mean, deviation = vae.encode(mels)
        parts.append(vae.decode(mean + deviation * torch.randn(mean.shape, generator=generator)))
    return torch.cat(parts)


@torch.no_grad()
def start_vocoder(vocoder: Vocoder) -> None:
    """Scales the residual branches down."""
    for block in vocoder.resblocks:
        for convolution in block.get_submodule("convs2").children():
            convolution.get_parameter("parametrizations.weight.original0").mul_(QUIET_RESIDUE)
            nn.init.zeros_(convolution.get_parameter("bias"))


def quiet_level(progress: float) -> float:
    """The silence level of `vocoder_loss`, relative to full scale.

    -40 dB at first, -100 dB from 80 % of the training on. If it were low from the start, the steep logarithm near
    silence would dominate the loss, and the vocoder would learn to be quiet and never make tones.
    """
    return 10 ** (-2 - 3 * min(1.0, max(0.0, (progress - 0.3) / 0.5)))


def vocoder_loss(
    vocoder: Callable[[Tensor], Tensor], mel: MelSpectrogram, mels_BMT: Tensor, waves_BN: Tensor, quiet: float
) -> Tensor:
    """Relative error of the wave, plus L1 of the logarithms above `quiet` of mels and of spectra at 3 resolutions."""
    made_BN = vocoder(mels_BMT)[:, 0]
    loss = _log_error(10 ** mel(made_BN), 10 ** mel(waves_BN), quiet) + _relative(made_BN, waves_BN)
    for n_fft, hop in RESOLUTIONS:
        window = torch.hann_window(n_fft)
        made, true = (
            torch.stft(x, n_fft, hop, window=window, return_complex=True).abs().clamp(min=1e-7)
            for x in (made_BN, waves_BN)
        )
        loss = loss + 0.3 * _log_error(made, true, quiet * n_fft / 16) + _relative(made, true)
    return loss


def _log_error(made: Tensor, true: Tensor, floor: float) -> Tensor:
    return F.l1_loss((made + floor).log10(), (true + floor).log10())


def _relative(made: Tensor, true: Tensor) -> Tensor:
    y: Tensor = (made - true).norm() / true.norm()
    return y


@torch.no_grad()
def log_mel_errors(vocoder: Callable[[Tensor], Tensor], mel: MelSpectrogram, mels_BMT: Tensor) -> tuple[float, float]:
    """Mean absolute log10-mel error of the vocoder's output for true mels: everywhere, and only above -70 dB.

    Most of a clip is silence, so the second error is the harder test.
    """
    made_BMT = torch.cat([mel(vocoder(mels)[:, 0]) for mels in mels_BMT.split(4)])
    errors = (made_BMT - mels_BMT).abs()
    return float(errors.mean()), float(errors[mels_BMT > LOUD].mean())


def step_seed(seed: int, stage: str, step: int) -> int:
    """Draws a seed for torch from the random numbers of one step."""
    return int(draws(seed, stage, step).integers(2**62))
