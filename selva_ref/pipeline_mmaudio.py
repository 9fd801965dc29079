"""MMAudio in its plainest form: frames, a prompt, or both in, one track out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selva_ref.model.clip_image import ClipImageTower
from selva_ref.model.presets import Preset
from selva_ref.model.video_encoder import Teacher, segment
from selva_ref.pipeline import Networks, preprocess, preprocess_clip


class MMAudioPipeline(Networks):
    """MMAudio: all sounds of a video, or of a text alone.

    Weights come from a folder of checkpoints or, if that is None, are random.

    Raises:
        ValueError: the preset is not one of MMAudio.
        CheckpointError: weights are missing, damaged or do not fit.
    """

    teacher: Teacher
    clip_image: ClipImageTower

    def __init__(
        self,
        preset: str | Preset,
        checkpoints: Path | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(preset, checkpoints, device, dtype, "mmaudio", "teacher", "clip_image")

    @torch.inference_mode()
    def __call__(
        self,
        clip_frames: np.ndarray | None,
        sync_frames: np.ndarray | None,
        prompt: str | None = None,
        *,
        duration_s: float,
        negative: str | None = None,
        noise: np.ndarray | None = None,
        seed: int = 0,
        steps: int = 25,
        guidance: float = 4.5,
        solver: str = "euler",
    ) -> np.ndarray:
        """Generates one track.

        Args:
            clip_frames: uint8 (T, 3, H, W) at 8 frames a second, of any size; None: the learned empty feature.
            sync_frames: the same at 25 frames a second. With neither, the sound follows the text alone.
            prompt: what is heard; None: the prompt "".
            duration_s: seconds of sound, from 0.64 to 30. The streams may be longer.
            negative: sounds to avoid; None: the learned empty text, not the prompt "".
            noise: (latent length, latent width) float32; None: the noise the runtime draws for a first stem.
            solver: "euler" or "ab2" with `steps`, or "adaptive".

        Returns:
            float32 (round(duration_s * rate),) in [-1, 1].

        Raises:
            ValueError: the duration is out of range, or a stream has too few frames for it.
        """
        lengths, g = self._lengths(duration_s), self.generator
        clip = g.empty_clip(1, lengths.visual) if clip_frames is None else self._clip(clip_frames, lengths.visual)
        sync = g.empty_sync(1, lengths.sync) if sync_frames is None else self._sync(sync_frames, lengths.frames)
        conditions = g.prepare(sync, clip, self._text(prompt or ""), latent_length=lengths.latent)
        empty = self._empty(conditions, lengths.sync, negative)
        return self._sound(
            conditions, empty, lengths, noise=noise, seed=seed, steps=steps, guidance=guidance, solver=solver
        )

    def _clip(self, frames: np.ndarray, count: int) -> Tensor:
        pixels = preprocess_clip(_first(frames, count), self.rules.clip_image_size)
        y: Tensor = self.clip_image(pixels.to(self.device))[None]
        return y

    def _sync(self, frames: np.ndarray, count: int) -> Tensor:
        video = preprocess(_first(frames, count), self.rules.image_size, self.rules.frame_fit)[None]
        segments = segment(video.to(self.device, self.dtype), self.preset.video)
        y: Tensor = self.teacher(segments).flatten(1, 2)
        return y


def _first(frames: np.ndarray, count: int) -> Tensor:
    if len(frames) < count:
        raise ValueError(f"{len(frames)} frames, but the duration needs {count}")
    return torch.from_numpy(frames[:count])
