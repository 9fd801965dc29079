"""The whole model in its plainest form: frames and a prompt in, one stem out.

Exports and runtimes are compared with this reference. It runs everything again for every prompt; use
`selva_runtime.Session` for speed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selva_bundle.lengths import LongForm, SequenceRules
from selva_ref.model.flow_matching import ab2, adaptive, euler
from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.layers import cast
from selva_ref.model.presets import Preset, get_preset
from selva_ref.model.text import ClipTower, T5Tower
from selva_ref.model.vae import VAE
from selva_ref.model.video_encoder import VideoEncoder
from selva_ref.model.vocoder import Vocoder
from selva_ref.weights.loading import load_part, load_tokenizers
from selva_runtime.flow import draw_noise


def sequence_rules(preset: Preset) -> SequenceRules:
    """The numbers that determine a preset's lengths; the export writes them into the bundle."""
    return SequenceRules(
        sample_rate_hz=preset.audio.sample_rate_hz,
        hop=preset.audio.hop,
        latent_width=preset.generator.latent_width,
        fps=preset.fps,
        clip_fps=preset.clip_fps,
        segment_frames=preset.video.segment_frames,
        segment_step=preset.video.segment_step,
        sync_per_segment=preset.video.time_tokens,
        image_size=preset.video.image_size,
        min_duration_s=preset.video.segment_frames / preset.fps,
        max_duration_s=30.0,
        sync_timing="even" if preset.generator.frames_per_latent is None else "shown",
        frame_fit="crop" if preset.system == "mmaudio" else "squash",
        clip_image_size=0 if preset.image is None else preset.image.image_size,
    )


def long_form(preset: Preset) -> LongForm:
    """How a preset generates videos that are longer than its training clips; the export writes it into the bundle."""
    return LongForm(
        window_segments=sequence_rules(preset).lengths(preset.duration_s).segments,
        anchor_segments=preset.anchor_segments,
        overlap_segments=preset.overlap_segments,
    )


def preprocess(frames: Tensor, size: int) -> Tensor:
    """uint8 frames (T, 3, H, W) → (T, 3, size, size) in [-1, 1]: bicubic with antialiasing, aspect not kept."""
    if frames.shape[-2:] != (size, size):
        frames = F.interpolate(frames, size=(size, size), mode="bicubic", antialias=True)
    return (frames.float() / 255 - 0.5) / 0.5


class Pipeline:
    """Every network of a preset, with weights from a folder of checkpoints or, if that is None, random weights."""

    video_encoder: VideoEncoder
    generator: Generator
    vae: VAE
    vocoder: Vocoder
    text_t5: T5Tower
    text_clip: ClipTower

    def __init__(
        self,
        preset: str | Preset,
        checkpoints: Path | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.preset = get_preset(preset) if isinstance(preset, str) else preset
        self.rules = sequence_rules(self.preset)
        self.device = torch.device(device)
        for part in ("video_encoder", "generator", "vae", "vocoder", "text_t5", "text_clip"):
            setattr(self, part, cast(load_part(part, self.preset, checkpoints), dtype).to(device))
        self.tokenizers = load_tokenizers(self.preset, checkpoints)

    @torch.inference_mode()
    def __call__(
        self,
        frames: np.ndarray,
        prompt: str,
        *,
        duration_s: float,
        negative: str | None = None,
        noise: np.ndarray | None = None,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 4.5,
        solver: str = "euler",
    ) -> np.ndarray:
        """Generates a stem for one prompt.

        Args:
            frames: uint8 (T, 3, H, W) at the preset's rate, T at least `duration_s` times 25; any size.
            duration_s: seconds of sound, from 0.64 to 30.
            negative: sounds to avoid; None: the learned empty text.
            noise: (latent length, latent width) float32; None: the noise the runtime draws for a first stem.
            solver: "euler" or "ab2" with `steps`, or "adaptive".

        Returns:
            float32 (round(duration_s * rate),) in [-1, 1].
        """
        lengths = self.rules.lengths(duration_s)
        if noise is None:
            noise = draw_noise(seed, 0, 0, lengths.latent, self.rules.latent_width)
        conditions, empty = self._conditions(frames[: lengths.frames], prompt, negative, lengths.latent, lengths.visual)

        def flow(t: float, x: Tensor) -> Tensor:
            return self.generator.guided_flow(x, torch.tensor([t], device=self.device), conditions, empty, guidance)

        start = torch.from_numpy(noise)[None].to(self.device, self.video_encoder.dtype)
        solvers = {
            "euler": lambda: euler(flow, start, steps=steps),
            "ab2": lambda: ab2(flow, start, steps=steps),
            "adaptive": lambda: adaptive(flow, start),
        }
        latent = solvers[solver]()
        mel = self.vae.decode(self.generator.unnormalize(latent).transpose(1, 2))
        audio = self.vocoder(mel).flatten()[: lengths.samples]
        return F.pad(audio, (0, lengths.samples - audio.shape[0])).cpu().numpy()

    def _conditions(
        self, frames: np.ndarray, prompt: str, negative: str | None, latent: int, clip: int
    ) -> tuple[Conditions, Conditions]:
        video = preprocess(torch.from_numpy(frames), self.preset.video.image_size)[None]
        video = video.to(self.device, self.video_encoder.dtype)
        ids = self._ids("t5", prompt)
        mask = torch.ones_like(ids, dtype=torch.bool)
        sync = self.video_encoder(video, self.text_t5(ids, mask), mask)
        text = self.text_clip(self._ids("clip", prompt))
        against = None if negative is None else self.text_clip(self._ids("clip", negative))
        conditions = self.generator.prepare(sync, self.generator.empty_clip(1, clip), text, latent_length=latent)
        return conditions, self.generator.prepare_empty(conditions, sync_length=sync.shape[1], negative_text=against)

    def _ids(self, which: str, prompt: str) -> Tensor:
        return torch.tensor([self.tokenizers[which].encode(prompt).ids], device=self.device)
