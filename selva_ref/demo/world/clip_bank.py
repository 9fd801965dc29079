"""Rendered clips, mapped from one file: the training data of the demo's video networks.

Shapes: T frames, S segments, C frames for the image tower, H, W pixels, K kinds. A clip is rendered once. Mixing two of
them, as the paper does, makes new scenes at no cost.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selva_bundle.atomic import atomic_write
from selva_ref.demo.world.kinds import KINDS
from selva_ref.demo.world.scenes import FPS, FRAMES, SIZE, Scene, composed_scene, render, single_scene
from selva_ref.model.presets import PRESETS
from selva_ref.model.video_encoder import segment
from selva_ref.training.examples.mixing import side_by_side

VIDEO = PRESETS["demo"].video
SEGMENT, STEP = VIDEO.segment_frames, VIDEO.segment_step
SEGMENTS = (FRAMES - SEGMENT) // STEP + 1
_ALL = slice(None)
PICTURES = np.ceil(np.arange(FRAMES * PRESETS["demo"].clip_fps // FPS) * FPS / PRESETS["demo"].clip_fps).astype(int)
"""(C,) the frame that is shown at each tick of the image tower's rate: the first one at or after it."""


def single_scenes(count: int, seed: int) -> list[Scene]:
    """Makes scenes of one source each. The kinds alternate, so that labels are balanced."""
    return [single_scene((seed, 1, index), KINDS[index % len(KINDS)]) for index in range(count)]


def pair_scenes(count: int, seed: int) -> list[Scene]:
    """Makes scenes of two sources of different kinds."""
    return [composed_scene((seed, 6, index)) for index in range(count)]


class ClipBank:
    """Scenes and their frames.

    With a `path` the frames are stored there (1.3 MB per clip), and rendered only if the file does not exist.
    """

    def __init__(self, scenes: Sequence[Scene], path: Path | None = None) -> None:
        self.scenes, clips = scenes, len(scenes)
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
        """(clips,) kind of each clip's first source."""
        self.onsets_NT = torch.from_numpy(np.stack([onset_frames(scene) for scene in self.scenes]))

    def __len__(self) -> int:
        return len(self.scenes)

    def _render(self, frames: np.ndarray) -> None:
        for index, scene in enumerate(self.scenes):
            frames[index] = render(scene)
            if (index + 1) % 1000 == 0:
                print(f"rendered {index + 1}/{len(self.scenes)} clips", file=sys.stderr, flush=True)

    def beside(self, left: int, right: int, share: float, near: bool, shown: slice = _ALL) -> Tensor:
        """Two clips side by side, the left one in a `share` of the columns: uint8 (T, 3, H, W) of the frames `shown`.

        Each is squeezed as in the paper. If `near`, only the columns around its first source are: as few as hold it
        and fill its part, so that it is squeezed little or not at all.
        """
        columns = int(share * SIZE)
        first, second = (
            self._around(item, width, shown) if near else self.frames[item, shown]
            for item, width in ((left, columns), (right, SIZE - columns))
        )
        return side_by_side(first, second, share, target_left=True, width=SIZE)

    def _around(self, item: int, columns: int, shown: slice) -> Tensor:
        """The frames `shown` of a clip, cut to its first source and at least `columns` columns."""
        place = self.scenes[item].sources[0].place
        width = min(SIZE, max(columns, math.ceil(place.size * SIZE)))
        start = min(max(0, round(place.x * SIZE - width / 2)), SIZE - width)
        return self.frames[item, shown, :, :, start : start + width]

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
