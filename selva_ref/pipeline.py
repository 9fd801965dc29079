"""SelVA in its plainest form: frames and a prompt in, one stem out. `pipeline_mmaudio` is the same for MMAudio.

Exports and runtimes are compared with this reference. It runs everything again for every prompt; use
`selva_runtime.Session` for speed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selva_bundle.lengths import Lengths, LongForm, SequenceRules
from selva_bundle.manifest import AverageFlow, Defaults
from selva_bundle.ports import BEST, DRAFT, QUALITIES
from selva_ref.model.average import AverageGenerator, jumps
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


def preprocess(frames: Tensor, size: int, fit: str = "squash") -> Tensor:
    """uint8 frames (T, 3, H, W) → (T, 3, size, size) in [-1, 1], resized bicubically with antialiasing on uint8.

    `fit` "squash" does not keep the aspect ratio. "crop" resizes the shorter side to `size` and keeps the middle.
    """
    return (resize(frames, size, fit).float() / 255 - 0.5) / 0.5


def preprocess_clip(frames: Tensor, size: int) -> Tensor:
    """uint8 frames (T, 3, H, W) → (T, 3, size, size) in [0, 1] for the image tower, squashed."""
    return resize(frames, size, "squash").float() / 255


def resize(frames: Tensor, size: int, fit: str) -> Tensor:
    """uint8 frames (T, 3, H, W) → uint8 (T, 3, size, size); see `preprocess`."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    target = (size, size) if fit == "squash" else (size * height // short, size * width // short)
    if (height, width) != target:
        frames = F.interpolate(frames, size=target, mode="bicubic", antialias=True)
    top, left = (round((side - size) / 2) for side in target)  # halves to even, as in training
    return frames[..., top : top + size, left : left + size]


class Networks:
    """The networks of one preset, with weights from a folder of checkpoints or, if that is None, random weights."""

    generator: Generator
    vae: VAE
    vocoder: Vocoder
    text_clip: ClipTower

    def __init__(
        self,
        preset: str | Preset,
        checkpoints: Path | None,
        device: str,
        dtype: torch.dtype,
        system: str,
        *parts: str,
        generator: str = "generator",
    ) -> None:
        self.preset = get_preset(preset) if isinstance(preset, str) else preset
        if self.preset.system != system:
            raise ValueError(f"preset {self.preset.name} is one of {self.preset.system}, not of {system}")
        self.rules = sequence_rules(self.preset)
        self.device, self.dtype = torch.device(device), dtype
        for name, part in {"generator": generator, **{p: p for p in ("vae", "vocoder", "text_clip", *parts)}}.items():
            setattr(self, name, cast(load_part(part, self.preset, checkpoints), dtype).to(device))
        self.tokenizers = load_tokenizers(self.preset, checkpoints)

    def _lengths(self, duration_s: float) -> Lengths:
        least, most = self.rules.min_duration_s, self.rules.max_duration_s
        if not least <= duration_s <= most:
            raise ValueError(f"duration {duration_s} s: must be from {least} to {most} s")
        return self.rules.lengths(duration_s)

    def _sound(
        self,
        conditions: Conditions,
        empty: Conditions,
        lengths: Lengths,
        *,
        noise: np.ndarray | None,
        seed: int,
        steps: int,
        guidance: float,
        solver: str,
    ) -> np.ndarray:
        """Solves the flow and decodes the latent, float32 (samples,)."""
        if noise is None:
            noise = draw_noise(seed, 0, 0, lengths.latent, self.rules.latent_width)

        def flow(t: float, x: Tensor) -> Tensor:
            return self.generator.guided_flow(x, torch.tensor([t], device=self.device), conditions, empty, guidance)

        def average(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            assert isinstance(self.generator, AverageGenerator)
            return self.generator.average(x, t, r, torch.tensor([guidance], device=self.device), conditions)

        start = torch.from_numpy(noise)[None].to(self.device, self.dtype)
        solvers = {
            "euler": lambda: euler(flow, start, steps=steps),
            "ab2": lambda: ab2(flow, start, steps=steps),
            "adaptive": lambda: adaptive(flow, start),
            "jumps": lambda: jumps(average, start, steps=steps),
        }
        latent = solvers[solver]()
        mel = self.vae.decode(self.generator.unnormalize(latent).transpose(1, 2))
        audio = self.vocoder(mel).flatten()[: lengths.samples]
        return F.pad(audio, (0, lengths.samples - audio.shape[0])).cpu().numpy()

    def _ids(self, which: str, prompt: str) -> Tensor:
        return torch.tensor([self.tokenizers[which].encode(prompt).ids], device=self.device)

    def _text(self, prompt: str) -> Tensor:
        y: Tensor = self.text_clip(self._ids("clip", prompt))
        return y

    def _empty(self, like: Conditions, sync_length: int, negative: str | None) -> Conditions:
        """The conditions of guidance's other side."""
        against = None if negative is None else self._text(negative)
        return self.generator.prepare_empty(like, sync_length=sync_length, negative_text=against)


class Pipeline(Networks):
    """SelVA: the one sound of a video that a prompt asks for.

    Weights come from a folder of checkpoints or, if that is None, are random. The `quality` "draft" uses the student.

    Raises:
        ValueError: the preset is not one of SelVA, or the quality is neither "best" nor "draft".
        CheckpointError: weights are missing, damaged or do not fit.
    """

    video_encoder: VideoEncoder
    text_t5: T5Tower

    def __init__(
        self,
        preset: str | Preset,
        checkpoints: Path | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        quality: str = BEST,
    ) -> None:
        if quality not in QUALITIES:
            raise ValueError(f"unknown quality {quality!r}; choose one of {', '.join(QUALITIES)}")
        self.drafts = quality == DRAFT
        generator = "student" if self.drafts else "generator"
        super().__init__(preset, checkpoints, device, dtype, "selva", "video_encoder", "text_t5", generator=generator)

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
        steps: int | None = None,
        guidance: float = 4.5,
        solver: str = "euler",
    ) -> np.ndarray:
        """Generates a stem for one prompt.

        Args:
            frames: uint8 (T, 3, H, W) at the preset's rate, T at least `duration_s` times 25; any size.
            duration_s: seconds of sound, from 0.64 to 30.
            negative: sounds to avoid; None: the learned empty text. A draft has none.
            noise: (latent length, latent width) float32; None: the noise the runtime draws for a first stem.
            steps: None: 25, or 4 of a draft.
            solver: "euler" or "ab2" with `steps`, or "adaptive". A draft makes jumps instead.

        Returns:
            float32 (round(duration_s * rate),) in [-1, 1].

        Raises:
            ValueError: the duration is out of range, or a draft was given a negative prompt.
        """
        if self.drafts:
            if negative is not None:
                raise ValueError("a draft has no negative prompt")
            solver = "jumps"
        if steps is None:
            steps = AverageFlow().steps if self.drafts else Defaults().steps
        lengths, g = self._lengths(duration_s), self.generator
        sync = self._sync(frames[: lengths.frames], prompt)
        conditions = g.prepare(sync, g.empty_clip(1, lengths.visual), self._text(prompt), latent_length=lengths.latent)
        empty = self._empty(conditions, lengths.sync, negative)
        return self._sound(
            conditions, empty, lengths, noise=noise, seed=seed, steps=steps, guidance=guidance, solver=solver
        )

    def _sync(self, frames: np.ndarray, prompt: str) -> Tensor:
        video = preprocess(torch.from_numpy(frames), self.preset.video.image_size)[None]
        ids = self._ids("t5", prompt)
        mask = torch.ones_like(ids, dtype=torch.bool)
        y: Tensor = self.video_encoder(video.to(self.device, self.dtype), self.text_t5(ids, mask), mask)
        return y
