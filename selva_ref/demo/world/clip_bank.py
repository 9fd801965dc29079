"""Rendered clips, mapped from one file: the training data of the demo's video networks.

Shapes: T frames, S segments, H, W pixels, K kinds. A clip is rendered once. Mixing two of them, as the paper does,
makes new scenes at no cost.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selva_bundle.atomic import atomic_write
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import FPS, FRAMES, SIZE, Scene, render, single_scene
from selva_ref.model.presets import PRESETS
from selva_ref.model.video_encoder import segment

VIDEO = PRESETS["demo"].video
SEGMENT, STEP = VIDEO.segment_frames, VIDEO.segment_step
SEGMENTS = (FRAMES - SEGMENT) // STEP + 1


class ClipBank:
    """`clips` scenes of one source each, and their frames. The kinds alternate, so that labels are balanced.

    With a `path` the frames are stored there (1.3 MB per clip), and rendered only if the file does not exist.
    """

    def __init__(self, clips: int, seed: int, path: Path | None = None) -> None:
        self.scenes = [single_scene((seed, 1, i), KINDS[i % len(KINDS)]) for i in range(clips)]
        if path is None:
            frames = np.empty((clips, FRAMES, 3, SIZE, SIZE), np.uint8)
            self._render(frames)
        else:
            if not path.exists():
                with atomic_write(path) as temporary:
                    mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, (clips, FRAMES, 3, SIZE, SIZE))
                    self._render(mapped)
                    mapped.flush()
            frames = np.load(path, mmap_mode="c")  # torch asks for writable memory
        self.frames = torch.from_numpy(frames)
        self.kinds = np.array([KINDS.index(scene.sources[0].kind) for scene in self.scenes])
        self.onsets_NT = torch.from_numpy(np.stack([onset_frames(scene) for scene in self.scenes]))

    def __len__(self) -> int:
        return len(self.scenes)

    def _render(self, frames: np.ndarray) -> None:
        for index, scene in enumerate(self.scenes):
            frames[index] = render(scene)
            if (index + 1) % 1000 == 0:
                print(f"rendered {index + 1}/{len(self.scenes)} clips", file=sys.stderr, flush=True)

    def different_kind(self, rng: np.random.Generator, items: np.ndarray) -> np.ndarray:
        """Draws for each item another one of a different kind."""
        others = rng.integers(len(self), size=items.size)
        while (same := self.kinds[others] == self.kinds[items]).any():
            others[same] = rng.integers(len(self), size=int(same.sum()))
        return others


def onset_frames(scene: Scene) -> np.ndarray:
    """(T,) bool: true for the first frame that shows an event."""
    shown = np.zeros(FRAMES, bool)
    for source in scene.sources:
        shown[np.minimum(np.ceil(source.events_s * FPS).astype(int), FRAMES - 1)] = True
    return shown


def segments_of(frames_BTCHW: Tensor) -> Tensor:
    """uint8 frames (B, T, 3, H, W) → float segments (B, S, 3, 16, H, W) in [-1, 1]."""
    return segment(frames_BTCHW, VIDEO).float().div_(127.5).sub_(1)
