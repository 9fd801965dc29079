"""The plain pipeline of MMAudio: pixels, frames, and what the generator is given in each mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from clips import numbered, numbers_of, write_video
from oracle import DATA, expected
from torch import Tensor

from selva_ref.model.presets import PRESETS, ImageConfig, Preset
from selva_ref.model.video_encoder import segment
from selva_ref.pipeline import Pipeline, preprocess, preprocess_clip, sequence_rules
from selva_ref.pipeline_mmaudio import MMAudioPipeline
from selva_ref.weights.random_weights import normal
from selva_runtime.media.video import read_clip

DEMO = PRESETS["demo_mmaudio"]


# -- pixels -----------------------------------------------------------------------------------------------------------


def oracle_frames(kind: str, count: int, height: int, width: int) -> Tensor:
    """The frames that the original was shown, uint8 (count, 3, height, width)."""
    key = f"input.frames.{kind}"
    coarse = normal(f"{key}.coarse", count, -(-height // 12), -(-width // 12), 3)
    coarse = coarse.repeat(12, axis=1).repeat(12, axis=2)[:, :height, :width]
    values = np.rint(128 + 24 * normal(key, count, height, width, 3) + 60 * coarse)
    return torch.from_numpy(np.clip(values, 0, 255).astype(np.uint8)).movedim(-1, 1)


@pytest.mark.parametrize("kind", ["wide", "tall", "large"])
def test_pixels_are_those_of_the_original(kind: str) -> None:
    stored = expected("preprocess_a")
    frames = oracle_frames(kind, *(int(n) for n in stored[f"{kind}_size"]))[:1]
    clip, sync = preprocess_clip(frames, 384), preprocess(frames, 224, "crop")
    assert torch.equal((clip * 255).round().byte(), torch.from_numpy(stored[f"{kind}_clip_u8"]))
    assert torch.equal(((sync * 0.5 + 0.5) * 255).round().byte(), torch.from_numpy(stored[f"{kind}_sync_u8"]))
    assert (clip.min() >= 0, clip.max() <= 1, sync.min() >= -1, sync.max() <= 1) == (True,) * 4


@pytest.mark.parametrize(("width", "offset"), [(399, 88), (397, 86), (224, 0)])
def test_the_middle_is_kept_and_halves_are_rounded_to_even(width: int, offset: int) -> None:
    columns = torch.arange(width).remainder(251).byte().expand(1, 3, 224, width)
    cropped = ((preprocess(columns, 224, "crop") * 0.5 + 0.5) * 255).round().byte()
    assert torch.equal(cropped, columns[..., offset : offset + 224])
    rows = ((preprocess(columns.mT, 224, "crop") * 0.5 + 0.5) * 255).round().byte()
    assert torch.equal(rows, columns.mT[..., offset : offset + 224, :])


# -- frames -----------------------------------------------------------------------------------------------------------


def expanded(ranges: str) -> list[int]:
    """`0-2,7x2` → 0, 1, 2, 7, 7."""
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        number, _, times = part.partition("x")
        numbers += range(int(first), int(last) + 1) if last else [int(number)] * int(times or 1)
    return numbers


def ticks(pts: str) -> list[int]:
    """`5+512*i, i<330` or a list of numbers."""
    if "*i" not in pts:
        return [int(tick) for tick in pts.split(",")]
    formula, count = pts.split(", i<")
    first, step = formula.removesuffix("*i").split("+")
    return [int(first) + int(step) * i for i in range(int(count))]


TABLE = [line.split("\t") for line in (DATA / "expected" / "mmaudio_frames.tsv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("row", TABLE, ids=[f"{row[0]} {row[4]} s" for row in TABLE])
def test_frames_are_those_of_the_original_without_its_drift(row: list[str], tmp_path: Path) -> None:
    """The original adds 1/25 again and again, in floats, so a frame exactly at a due time may be missed for the next.

    At 8 frames a second nothing drifts. A first frame later than 0 is another matter: we count from it.
    """
    name, container, base, pts, asked_s, *_, clip_frames, sync_frames = row
    time_base, shown = Fraction(base), ticks(pts)
    pictures = (numbered(n) for n in range(len(shown)))
    path = write_video(
        tmp_path / f"a.{container}", pictures, ticks=shown, time_base=time_base, options={"bf": "0", "g": "10"}
    )
    late = expanded(clip_frames)[:2] == [0, 0]
    assert late == (name == "late-start")
    for fps, theirs in ((8, expanded(clip_frames)), (25, expanded(sync_frames))):
        clip = read_clip(path, size=16, fps=fps, duration_s=float(asked_s))
        ours = numbers_of(clip.frames)
        for k, (number, their_number) in enumerate(zip(ours, theirs, strict=False)):
            exact = next(i for i, tick in enumerate(shown) if (tick - shown[0]) * time_base >= Fraction(k, fps))
            assert number == exact % 256, (fps, k)
            if their_number != exact and not late:
                assert (fps, their_number, shown[exact] * time_base) == (25, exact + 1, Fraction(k, fps)), k
        assert len(ours) >= len(theirs)


# -- pipeline ---------------------------------------------------------------------------------------------------------


def frames(count: int, seed: int, height: int = 80, width: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


CLIP, SYNC = frames(9, 1), frames(27, 2)  # more than the second that is used


@pytest.fixture(scope="module")
def pipeline() -> MMAudioPipeline:
    return MMAudioPipeline("demo_mmaudio")


@pytest.fixture
def given(pipeline: MMAudioPipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[Tensor, ...]]]:
    """Runs the pipeline and returns the (sync, clip, text) of both sides of guidance."""
    prepare, calls = pipeline.generator.prepare, []

    def spy(sync: Tensor, clip: Tensor, text: Tensor, **rest: int) -> object:
        calls.append((sync, clip, text))
        return prepare(sync, clip, text, **rest)

    monkeypatch.setattr(pipeline.generator, "prepare", spy)

    def run(*streams: np.ndarray | None, prompt: str | None = None, **options: object) -> list[tuple[Tensor, ...]]:
        calls.clear()
        pipeline(*streams, prompt, duration_s=1.0, steps=1, **options)
        return list(calls)

    return run


def empty(pipeline: MMAudioPipeline) -> tuple[Tensor, ...]:
    g, lengths = pipeline.generator, pipeline.rules.lengths(1.0)
    return g.empty_sync(1, lengths.sync), g.empty_clip(1, lengths.visual), g.empty_text(1)


def assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def test_each_mode_gives_the_generator_what_it_has(pipeline, given) -> None:
    no_sync, no_clip, no_text = empty(pipeline)
    clip = pipeline.clip_image(preprocess_clip(torch.from_numpy(CLIP[:8]), 64))[None]
    video = preprocess(torch.from_numpy(SYNC[:25]), 64, "crop")[None]
    sync = pipeline.teacher(segment(video, DEMO.video)).flatten(1, 2)
    text = {words: pipeline.text_clip(pipeline._ids("clip", words)) for words in ("rain", "")}
    assert not torch.equal(text[""], no_text)
    modes = [
        ((CLIP, SYNC), (sync, clip)),
        ((None, None), (no_sync, no_clip)),
        ((None, SYNC), (sync, no_clip)),
        ((CLIP, None), (no_sync, clip)),
    ]
    for streams, features in modes:
        asked, against = given(*streams, prompt="rain")
        assert_equal(asked, (*features, text["rain"]))
        assert_equal(against, (no_sync, no_clip, no_text))
    assert_equal(given(CLIP, SYNC)[0], (sync, clip, text[""]))  # no prompt is the prompt "" ...
    assert_equal(given(CLIP, SYNC, negative="")[1], (no_sync, no_clip, text[""]))  # ... no negative one is not


def test_the_sound_has_the_asked_length_and_depends_on_every_input(pipeline: MMAudioPipeline) -> None:
    options = {"duration_s": 1.0, "steps": 2}
    sound = pipeline(CLIP, SYNC, "rain", **options)
    assert (sound.shape, sound.dtype, np.isfinite(sound).all()) == ((16000,), np.float32, True)
    np.testing.assert_array_equal(sound, pipeline(CLIP[:8], SYNC[:25], "rain", **options))
    others = [
        pipeline(frames(8, 3), SYNC, "rain", **options),
        pipeline(CLIP, frames(25, 4), "rain", **options),
        pipeline(CLIP, SYNC, "bells", **options),
        pipeline(CLIP, SYNC, "rain", negative="music", **options),
        pipeline(CLIP, SYNC, "rain", seed=1, **options),
        pipeline(CLIP, SYNC, "rain", guidance=1.0, **options),
        pipeline(None, SYNC, "rain", **options),
    ]
    for other in others:
        assert np.linalg.norm(other - sound) > 1e-3 * np.linalg.norm(sound)
    assert pipeline(None, None, duration_s=0.64, steps=1).shape == (10240,)


def test_what_does_not_fit_is_one_error(pipeline: MMAudioPipeline) -> None:
    for duration_s in (0.63, 30.1, float("nan")):
        with pytest.raises(ValueError, match=r"must be from 0\.64 to 30\.0 s"):
            pipeline(None, None, duration_s=duration_s)
    with pytest.raises(ValueError, match="7 frames, but the duration needs 8"):
        pipeline(CLIP[:7], SYNC, duration_s=1.0)
    with pytest.raises(ValueError, match="24 frames, but the duration needs 25"):
        pipeline(CLIP, SYNC[:24], duration_s=1.0)
    with pytest.raises(ValueError, match="preset demo is one of selva, not of mmaudio"):
        MMAudioPipeline("demo")
    with pytest.raises(ValueError, match="preset demo_mmaudio is one of mmaudio, not of selva"):
        Pipeline("demo_mmaudio")


# -- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2"])
def test_presets_are_those_of_selva_with_an_image_tower(size: str) -> None:
    selva, mmaudio = PRESETS[size], PRESETS[f"mmaudio_{size}"]
    assert replace(mmaudio, name=size, system="selva", image=None) == selva
    assert (mmaudio.image, mmaudio.image.grid) == (ImageConfig(), 27)
    rules = sequence_rules(mmaudio)
    assert (rules.frame_fit, rules.clip_image_size) == ("crop", 384)
    assert replace(rules, frame_fit="squash", clip_image_size=0) == sequence_rules(selva)
    lengths = rules.lengths(8.0)
    assert (lengths.latent, lengths.visual, lengths.sync) == (250 if size == "small_16k" else 345, 64, 192)


def broken(**changes: object) -> Callable[[], Preset]:
    return lambda: replace(DEMO, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken(system="vos"), "unknown system 'vos'; choose one of selva, mmaudio"),
        (broken(image=None), "mmaudio has an image tower, selva has none"),
        (broken(system="selva"), "mmaudio has an image tower, selva has none"),
        (broken(image=ImageConfig()), "generator and image tower disagree"),
        (lambda: ImageConfig(width=100, heads=3), "width 100 is not a multiple of heads 3"),
        (lambda: ImageConfig(image_size=13), "image_size 13 is smaller than patch 14"),
    ],
)
def test_a_preset_must_fit_itself(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
