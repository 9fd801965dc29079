"""Scores of the demo's mixed tracks: the onsets of everything that sounds, and what sounds at each of them.

The test scenes are the composed ones: two things in one frame, both of which sound. Tracks are also made from less than
a picture and a caption, which tells what each of them is good for.
Shapes: B tracks, S*8 sync features, D their width, C visual tokens, L text tokens, E width of both, n samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import selva_ref
from selva_bundle.atomic import atomic_write
from selva_ref.demo.bed import BED
from selva_ref.demo.evaluation.events import Score, matched, onsets, score
from selva_ref.demo.evaluation.report import TEST_SEED, judge_of, numbers
from selva_ref.demo.evaluation.scores import Judge, TestScene, composed_tests
from selva_ref.demo.models.image_tower import picture_tokens
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.demo.sampling import in_batches, sample_stems
from selva_ref.demo.world.clip_bank import SEGMENTS, segments_of
from selva_ref.demo.world.kinds import KINDS, prompt
from selva_ref.demo.world.scenes import SAMPLES, SoundSource
from selva_ref.demo.world.sounds import RATE_HZ
from selva_ref.model.clip_image import ClipImageTower
from selva_ref.model.generator import Generator
from selva_ref.model.text import ClipTower
from selva_ref.model.video_encoder import Teacher

BATCH = 16
BEFORE_S, AFTER_S = 0.02, 0.1
"""The part of a track around an onset that the listener hears to name its kind: too short for most other sounds."""


@dataclass(frozen=True, kw_only=True)
class BedNetworks:
    """The networks that turn a picture and a caption into latents of a mixed track."""

    teacher: Teacher
    tower: ClipImageTower
    text: ClipTower
    generator: Generator

    @classmethod
    def of(cls, run: DemoRun) -> BedNetworks:
        """Loads the finished networks of a run."""
        return cls(
            teacher=run.load(selva_ref.build("teacher", PRESET), "teacher"),
            tower=run.load(selva_ref.build("clip_image", BED), "clip_image"),
            text=run.load(selva_ref.build("text_clip", PRESET), "text_clip"),
            generator=run.load(selva_ref.build("generator", BED), "bed"),
        )

    @torch.no_grad()
    def look(self, frames_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 frames (B, T, 3, H, W) → sync features (B, S*8, D) and visual tokens (B, C, E)."""
        sync = self.teacher(segments_of(frames_BTCHW)).flatten(1, 2)
        return sync, picture_tokens(self.tower, frames_BTCHW)


def make_tracks(
    networks: BedNetworks, judge: Judge, frames: Sequence[Tensor] | None, captions: Sequence[str], seed: int
) -> npt.NDArray[np.float32]:
    """Makes one track for each caption, (B, samples).

    Args:
        frames: the clips, uint8 (T, 3, H, W) each; None: no picture.
        captions: what to hear, "" if nothing is said.
    """

    def tracks(rows: slice) -> npt.NDArray[np.float32]:
        text = judge.prompts.clip_features(networks.text, captions[rows])
        if frames is None:
            sync, clip = networks.generator.empty_sync(len(text), 8 * SEGMENTS), None
        else:
            sync, clip = networks.look(torch.stack(list(frames[rows])))
        audio = sample_stems(
            networks.generator,
            judge.vae,
            judge.vocoder,
            sync,
            text,
            clip_BCE=clip,
            latent_length=judge.latent_length,
            seed=seed + rows.start,
        )
        return audio[:, :SAMPLES]

    return in_batches(len(captions), BATCH, tracks)


def score_tracks(judge: Judge, sources: Sequence[Sequence[SoundSource]], tracks: npt.NDArray[np.float32]) -> Score:
    """Scores all tracks together against the sources that should be heard in each.

    A hit counts as `right_kind` if the track, from just before the onset, sounds like the source of that event; `stems`
    is the number of hits.
    """
    return Score.total([_score_track(judge, *pair) for pair in zip(sources, tracks, strict=True)])


def _score_track(judge: Judge, sources: Sequence[SoundSource], track: npt.NDArray[np.float32]) -> Score:
    true_s = np.concatenate([source.events_s for source in sources])
    kinds = np.concatenate([np.full(source.events_s.size, KINDS.index(source.kind)) for source in sources])
    heard_s = onsets(track)
    pairs = matched(heard_s, true_s)
    found = score(track, true_s, np.empty(0), True)
    if not pairs:
        return replace(found, right_kind=0, stems=0)
    heard = judge.kinds_of(np.stack([_around(track, heard_s[i]) for i, _ in pairs]))
    return replace(found, right_kind=int((heard == kinds[[j for _, j in pairs]]).sum()), stems=len(pairs))


def _around(track: npt.NDArray[np.float32], onset_s: float) -> npt.NDArray[np.float32]:
    """The part of a track around an onset, with silence beyond its ends."""
    start = round((onset_s - BEFORE_S) * RATE_HZ)
    out = np.zeros(round((BEFORE_S + AFTER_S) * RATE_HZ), np.float32)
    part = track[max(0, start) : start + out.size]
    out[max(0, -start) :][: part.size] = part
    return out


def caption_of(scene: TestScene) -> str:
    """A caption that names everything that sounds."""
    return ", ".join(prompt(source.kind) for source in scene.sources)


def evaluate_bed(run: DemoRun) -> str:
    """Scores the mixed tracks, writes `bed_evaluation.{json,md}` and returns the table."""
    judge, networks = judge_of(run), BedNetworks.of(run)
    scenes = composed_tests(run.plan.tests, run.seed + TEST_SEED)
    frames, captions = [scene.frames for scene in scenes], [caption_of(scene) for scene in scenes]
    given = {
        "video": (frames, [""] * len(scenes)),
        "video and caption": (frames, captions),
        "caption alone": (None, captions),
        "caption, video of another scene": ([*frames[1:], frames[0]], captions),
    }
    sources = [scene.sources for scene in scenes]
    rows = {
        name: score_tracks(judge, sources, make_tracks(networks, judge, *inputs, run.seed))
        for name, inputs in given.items()
    }
    truth = np.stack([np.sum([s.sound() for s in one], axis=0, dtype=np.float32) for one in sources])
    rows["the true sound"] = score_tracks(judge, sources, truth)
    report = {
        "command": "selva-train demo",
        "seed": run.seed,
        "kind_from_caption_alone": caption_score(networks, judge, run.seed),
        "scenes": len(scenes),
        "steps": 25,
        "guidance": 4.5,
        "rows": {name: numbers(row) for name, row in rows.items()},
    }
    text = bed_table(rows)
    for name, content in (("json", json.dumps(report, indent=1)), ("md", text)):
        with atomic_write(run.folder / f"bed_evaluation.{name}") as temporary:
            temporary.write_text(content + "\n", encoding="utf-8")
    return text


def caption_score(networks: BedNetworks, judge: Judge, seed: int, each: int = 4) -> float:
    """Share of tracks without a picture that sound like the kind that their caption names."""
    kinds = np.repeat(np.arange(len(KINDS)), each)
    tracks = make_tracks(networks, judge, None, [prompt(KINDS[kind]) for kind in kinds], seed)
    return float((judge.kinds_of(tracks) == kinds).mean())


def bed_table(rows: dict[str, Score]) -> str:
    """Formats a Markdown table with one line per row."""
    lines = [
        "| given | onsets of both F1 ↑ | mean offset, ms ↓ | right kind at an onset ↑ |",
        "|---|---|---|---|",
        *(f"| {name} | {row.f1:.2f} | {row.offset_ms:.0f} | {row.kind:.2f} |" for name, row in rows.items()),
    ]
    return "\n".join(lines)
