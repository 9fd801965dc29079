"""The networks that no stage trains, applied to labels and clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import Preset
from selva_ref.model.video_encoder import segment
from selva_ref.pipeline import preprocess
from selva_ref.training.data.clips import Example
from selva_ref.training.precision import autocast
from selva_ref.weights.loading import load_part, load_tokenizers


@torch.inference_mode()
def text_features(preset: Preset, checkpoints: Path, labels: list[str], device: torch.device) -> dict[str, np.ndarray]:
    """Runs both text towers on every label; loads them for this and frees them afterwards.

    Returns:
        text_t5 float32 (labels, L, D) padded with zeros, text_t5_tokens int64 (labels,), text_clip float32 (labels, L,
            D).
    """
    towers = {name: load_part(f"text_{name}", preset, checkpoints).to(device) for name in ("t5", "clip")}
    tokenizers = load_tokenizers(preset, checkpoints)

    def ids(name: str, label: str) -> Tensor:
        return torch.tensor([tokenizers[name].encode(label).ids], device=device)

    t5 = []
    for label in labels:
        tokens = ids("t5", label)
        t5.append(towers["t5"](tokens, torch.ones_like(tokens, dtype=torch.bool))[0])
    clip = [towers["clip"](ids("clip", label))[0] for label in labels]
    return {
        "text_t5": pad_sequence(t5, batch_first=True).cpu().numpy(),
        "text_t5_tokens": np.array([len(one) for one in t5]),
        "text_clip": torch.stack(clip).cpu().numpy(),
    }


class FrozenNetworks:
    """Runs the VAE's encoder and the teacher."""

    def __init__(self, preset: Preset, checkpoints: Path, device: torch.device, precision: str) -> None:
        self.preset, self.device, self.precision = preset, device, precision
        self.vae = load_part("vae", preset, checkpoints).to(device)
        self.teacher = load_part("teacher", preset, checkpoints).to(device)
        self.mel = MelSpectrogram(preset.audio).to(device)

    @torch.inference_mode()
    def __call__(self, example: Example) -> dict[str, np.ndarray]:
        """Returns posterior float32 (2, T, Z), mean and deviation, and teacher float16 (N, D)."""
        wave = torch.from_numpy(example.wave)[None].to(self.device)
        mean, deviation = self.vae.encode(self.mel(wave))
        frames = preprocess(torch.from_numpy(example.frames).to(self.device), self.preset.video.image_size)[None]
        with autocast(self.device, self.precision):
            features = self.teacher(segment(frames, self.preset.video))
        return {
            "posterior": torch.cat((mean, deviation)).mT.float().cpu().numpy(),
            "teacher": features.flatten(0, 2).half().cpu().numpy(),
        }


@torch.inference_mode()
def posterior_of_silence(preset: Preset, checkpoints: Path, latent: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the latent of no sound, float32 (latent, Z) each.

    Raises:
        CheckpointError: the VAE is missing or does not fit.
    """
    vae, mel = load_part("vae", preset, checkpoints), MelSpectrogram(preset.audio)
    mean, deviation = vae.encode(mel(torch.zeros(1, 2 * preset.audio.hop * latent)))
    return mean[0].T.float().numpy(), deviation[0].T.float().numpy()
