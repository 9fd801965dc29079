"""The paper's first stage on the demo's clips: two clips side by side, the text of one, the teacher's view of that one.

The backbone is frozen, so its tokens of every mixed clip are computed once and stored in half precision. A mixed clip
is used twice: each of its two sources is the target of one row. A few clips stay alone, in both places: with the text
of something else they ask for silence, as a user may of a picture of one thing.
Shapes: M mixed clips, N tokens of a clip (S*8*P), D width, K kinds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from selva_bundle.atomic import atomic_write
from selva_ref.demo.models.text import UNKNOWN, Prompts
from selva_ref.demo.world.clip_bank import SEGMENT, SEGMENTS, ClipBank, segments_of
from selva_ref.demo.world.kinds import KINDS
from selva_ref.model.video_encoder import Teacher, VideoEncoder
from selva_ref.training.losses import distillation_loss

SHARES = (0.35, 0.65)
"""Range of the target's share of the columns; an object of the demo must stay wider than a patch."""
ALONE = 0.125
"""Share of the training pairs that are one clip."""


@dataclass(frozen=True, kw_only=True)
class Mixes:
    """Training rows of the selection: row r is mixed clip r // 2, with its left (even r) or right source as target."""

    tokens: np.ndarray
    """(M, N, D) float16 tokens of the frozen backbone, possibly mapped from disk."""
    sources: np.ndarray
    """(M, 2) indices of the clips on the left and on the right."""
    kinds: np.ndarray
    """(M, 2) their kinds."""
    stills: Tensor
    """(M, 8, D) the teacher's features of a segment that shows only the first frame of a mixed clip."""

    def __len__(self) -> int:
        return 2 * len(self.sources)

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Index of the target's clip for each row."""
        out: np.ndarray = self.sources[rows // 2, rows % 2]
        return out

    def tokens_of(self, rows: np.ndarray) -> Tensor:
        """Tokens of the rows, (B, N, D) float32."""
        return torch.from_numpy(np.ascontiguousarray(self.tokens[rows // 2])).float()

    def kinds_of(self, rows: np.ndarray) -> np.ndarray:
        """Kind of the target of each row."""
        out: np.ndarray = self.kinds[rows // 2, rows % 2]
        return out

    def absent_kinds(self, rng: np.random.Generator, rows: np.ndarray) -> np.ndarray:
        """Draws for each row what its mixed clip does not show: another kind, or (four in ten) something unknown."""
        choices = len(KINDS) * 3 // 2
        drawn = rng.integers(choices, size=len(rows))
        while (shown := (drawn[:, None] == self.kinds[rows // 2]).any(1)).any():
            drawn[shown] = rng.integers(choices, size=int(shown.sum()))
        return np.minimum(drawn, UNKNOWN)

    def still(self, rows: np.ndarray) -> Tensor:
        """The teacher's features (B, S*8, D) of clips in which nothing ever moves."""
        return held(self.stills[rows // 2])


def held(stills_BJD: Tensor) -> Tensor:
    """Features of one still segment (B, 8, D) → of a clip of them, (B, S*8, D)."""
    return stills_BJD.repeat(1, SEGMENTS, 1)


@torch.no_grad()
def still_features(teacher: Teacher, frames_BCHW: Tensor) -> Tensor:
    """The teacher's features (B, 8, D) of a segment that shows one frame, uint8 (B, 3, H, W)."""
    frames = frames_BCHW[:, None].expand(-1, SEGMENT, -1, -1, -1)
    return torch.cat([teacher(segments_of(part))[:, 0] for part in frames.split(32)])


@torch.no_grad()
def clean_features(teacher: Teacher, bank: ClipBank) -> Tensor:
    """The teacher's features of each clip alone, (clips, S*8, D)."""
    return torch.cat([teacher(segments_of(frames)).flatten(1, 2) for frames in bank.frames.split(8)])


@torch.no_grad()
def backbone_tokens(teacher: Teacher, frames_BTCHW: Tensor) -> Tensor:
    """Backbone tokens of whole clips, (B, N, D)."""
    segments = segments_of(frames_BTCHW)
    y: Tensor = teacher.vfeat_extractor.tokens(segments.flatten(0, 1)).unflatten(0, segments.shape[:2]).flatten(1, 2)
    return y


@torch.no_grad()
def pooled(teacher: Teacher, tokens_BND: Tensor) -> Tensor:
    """The teacher's features (B, S*8, D) from tokens, of everything in the picture."""
    segments = tokens_BND.unflatten(1, (-1, teacher.config.time_tokens * teacher.config.grid**2))
    y: Tensor = teacher.vfeat_extractor.pool(segments.flatten(0, 1)).unflatten(0, segments.shape[:2]).flatten(1, 2)
    return y


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two clips of different kinds, shown side by side; or one clip alone, as both."""

    left: int
    right: int
    share: float
    """The left clip's share of the columns."""
    near: bool
    """Cut to the things that sound, so that they are squeezed little: see `ClipBank.beside`."""

    def frames(self, bank: ClipBank, count: int | None = None) -> Tensor:
        """The mixed clip, or its first `count` frames, uint8 (T, 3, H, W)."""
        if self.left == self.right:
            return bank.frames[self.left, :count]
        return bank.beside(self.left, self.right, self.share, self.near, slice(count))


def draw_pair(bank: ClipBank, rng: np.random.Generator, share: float | None = None) -> Pair:
    """Draws a random pair.

    Unless `share` is given, it is drawn from `SHARES`, half of the pairs are `near`, and some are one clip alone.
    """
    left = rng.integers(len(bank), size=1)
    if share is None and rng.random() < ALONE:
        return Pair(left=int(left[0]), right=int(left[0]), share=1.0, near=False)
    right = bank.different_kind(rng, left)
    near = share is None and bool(rng.random() < 0.5)
    share = float(rng.uniform(*SHARES)) if share is None else share
    return Pair(left=int(left[0]), right=int(right[0]), share=share, near=near)


def make_mixes(teacher: Teacher, bank: ClipBank, count: int, seed: int, path: Path) -> Mixes:
    """Makes `count` mixed clips; their tokens are stored at `path` and mapped from there."""
    pairs = [draw_pair(bank, np.random.default_rng([seed, 2, m])) for m in range(count)]
    if not path.exists():
        with atomic_write(path) as temporary:
            _write_tokens(teacher, bank, pairs, temporary)
    sources = np.array([[pair.left, pair.right] for pair in pairs])
    first = torch.stack([pair.frames(bank, 1)[0] for pair in pairs])
    return Mixes(
        tokens=np.load(path, mmap_mode="r"),
        sources=sources,
        kinds=bank.kinds[sources],
        stills=still_features(teacher, first),
    )


def _write_tokens(teacher: Teacher, bank: ClipBank, pairs: list[Pair], path: Path) -> None:
    c = teacher.config
    per_clip = ((bank.frames.shape[1] - c.segment_frames) // c.segment_step + 1) * c.time_tokens * c.grid**2
    tokens = np.lib.format.open_memmap(path, "w+", np.float16, (len(pairs), per_clip, c.width))
    for start in range(0, len(pairs), 8):
        frames = torch.stack([pair.frames(bank) for pair in pairs[start : start + 8]])
        tokens[start : start + 8] = backbone_tokens(teacher, frames).numpy()
        if start % 1000 == 0:
            print(f"mixed {start}/{len(pairs)} clips", file=sys.stderr, flush=True)
    tokens.flush()


def selection_loss(
    student: VideoEncoder,
    mixes: Mixes,
    clean_NSD: Tensor,
    prompts: Prompts,
    t5_CLD: Tensor,
    rng: np.random.Generator,
    batch: int,
    absent_share: float,
) -> Tensor:
    """L2 between the student on a mixed clip with the target's text and the teacher on the target alone.

    With probability `absent_share` the text names what the clip does not show, and the teacher sees a still picture.
    """
    rows = rng.integers(len(mixes), size=batch)
    absent = rng.random(batch) < absent_share
    captions = prompts.draw(rng, np.where(absent, mixes.absent_kinds(rng, rows), mixes.kinds_of(rows)))
    wanted = clean_NSD[mixes.targets(rows)]
    wanted[absent] = mixes.still(rows[absent])
    seen = student.select(mixes.tokens_of(rows), t5_CLD[captions], prompts.t5_mask[captions])
    return distillation_loss(seen, wanted)


@torch.no_grad()
def selected(
    student: VideoEncoder,
    mixes: Mixes,
    rows: np.ndarray,
    kinds: np.ndarray,
    prompts: Prompts,
    t5_CLD: Tensor,
    rng: np.random.Generator,
) -> Tensor:
    """The student's features for rows (R,), each with one caption of a kind (R,): (R, S*8, D)."""
    captions = prompts.draw(rng, kinds)
    parts = [slice(start, start + 16) for start in range(0, len(rows), 16)]
    return torch.cat(
        [student.select(mixes.tokens_of(rows[p]), t5_CLD[captions[p]], prompts.t5_mask[captions[p]]) for p in parts]
    )
