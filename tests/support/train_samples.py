"""Small training data for the tests: real videos, or features of random numbers with painted frames."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from clips import numbered, write_video
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import selva_ref
from selva_ref.model.presets import AUDIO_16K, GeneratorConfig, Preset, VideoConfig, get_preset
from selva_ref.pipeline import sequence_rules
from selva_ref.training.data.listing import Listed, fingerprint
from selva_ref.training.data.store import DataDescription
from selva_ref.training.examples.mixed import MixedClips
from selva_ref.weights import random_weights

TINY = Preset(
    name="demo",
    generator=GeneratorConfig(
        width=96,
        heads=2,
        joint_blocks=2,
        fused_blocks=2,
        sync_width=48,
        clip_width=64,
        text_width=64,
        text_tokens=32,
    ),
    audio=replace(
        AUDIO_16K,
        vae_width=16,
        vocoder_width=64,
        vocoder_rates=(4, 4, 4, 4),
        vocoder_kernels=(8, 8, 8, 8),
        mel_statistics=None,
    ),
    video=VideoConfig(image_size=32, width=48, depth=2, heads=2, text_width=64),
    text=get_preset("demo").text,
)
"""Replaces the `demo` preset where losses are compared with stored ones, so it must not change with `demo`."""
RULES = sequence_rules(TINY)
DURATION_S = 0.96
LENGTHS = RULES.lengths(DURATION_S)
LABELS = ("dog barking", "rain on a roof")
CLIPS = 8


def tone(seconds: float, hz: float, rate_hz: int = 48000) -> np.ndarray:
    """A sine of amplitude 0.2."""
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def write_checkpoints(folder: Path, preset: Preset) -> Path:
    """Writes random weights of every part except the video encoder; the generator is `base.safetensors`."""
    folder.mkdir()
    for part in set(selva_ref.SYSTEM_PARTS["selva"]) - {"video_encoder"}:
        tensors = random_weights.state_dict(selva_ref.build(part, preset))
        name = "base" if part == "generator" else f"{part}_demo"
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    return folder


def write_videos(folder: Path, clips: int = CLIPS) -> tuple[Path, Path]:
    """Writes `clips` good one-second videos and one bad one of each kind; returns their folder and their list."""
    videos = folder / "videos"
    videos.mkdir()
    rows = []
    for number in range(clips):
        pictures = (numbered(9 * number + frame) for frame in range(25))
        write_video(videos / f"c{number}.mp4", pictures, sound=tone(1, 200 + 100 * number))
        rows.append((f"c{number}", LABELS[number % 2]))
    pictures = [numbered(frame) for frame in range(25)]
    write_video(videos / "hushed.mp4", pictures, sound=np.zeros(48000, np.float32))
    write_video(videos / "mute.mp4", pictures)
    write_video(videos / "short.mp4", pictures[:18], sound=tone(1, 200))
    (videos / "broken.mp4").write_bytes(b"not a video" * 99)
    rows += [(name, LABELS[0]) for name in ("hushed", "mute", "short", "broken", "gone")]
    path = folder / "list.tsv"
    path.write_text("id\tlabel\tsplit\n" + "".join(f"{clip}\t{label}\ttrain\n" for clip, label in rows))
    return videos, path


def write_features(folder: Path, clips: int = CLIPS, labels: tuple[str, ...] = LABELS) -> Path:
    """Writes features like `extract`, from random numbers. There are no videos; use `PaintedClips` for the frames."""
    folder.mkdir()
    preset = get_preset("demo")
    listed = [Listed(id=f"c{number}", label=labels[number % len(labels)]) for number in range(clips)]
    description = DataDescription(
        preset="demo", duration_s=DURATION_S, videos="nowhere", list_sha256=fingerprint(listed)
    )
    (folder / "data.json").write_text(json.dumps(asdict(description)))
    (folder / "list.tsv").write_text("id\tlabel\n" + "".join(f"{clip.id}\t{clip.label}\n" for clip in listed))
    (folder / "outcome.tsv").write_text("".join(f"{row}\tok\n" for row in range(clips)))
    arrays = {
        "posterior": (clips, 2, LENGTHS.latent, RULES.latent_width),
        "teacher": (clips, LENGTHS.sync, preset.video.width),
        "text_t5": (len(labels), 5, preset.video.text_width),
        "text_clip": (len(labels), preset.generator.text_tokens, preset.generator.text_width),
    }
    for name, shape in arrays.items():
        values = random_weights.normal(name, *shape)
        np.save(folder / f"{name}.npy", values.astype(np.float16) if name == "teacher" else values)
    np.save(folder / "text_t5_tokens.npy", np.array([3, 5, 4][: len(labels)]))
    return folder


class PaintedClips(MixedClips):
    """Frames computed from the row, without a codec."""

    def _frames(self, row: int) -> torch.Tensor:
        size = RULES.image_size
        shape = (LENGTHS.frames, 3, size, size)
        time, channel, y, x = np.ogrid[tuple(slice(length) for length in shape)]
        return torch.from_numpy(((time * (row + 1) * 3 + channel * 50 + y * row + x * 2) % 256).astype(np.uint8))


def events(folder: Path) -> EventAccumulator:
    """Reads the TensorBoard files of a run."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "audio": 0})
    return accumulator.Reload()


def curve(folder: Path, name: str = "loss/train") -> list[float]:
    """A curve's values, step by step from 1 on."""
    points = events(folder).Scalars(name)
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    return [point.value for point in points]
