"""Compares the stem from a bundle with the stem from the reference pipeline, for the same noise.

Limits: relative error at most 1e-3 for float32 graphs, at least 35 dB signal-to-noise for float16 graphs.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import selva_ref
from selva_export.bundle import ExportRequest, export_bundle
from selva_ref.pipeline import Pipeline
from selva_runtime import Session

PROMPTS = ["dog barking", "footsteps on gravel"]
CASES = {
    "one second": {"duration_s": 1.0},
    "odd length, negative prompt": {"duration_s": 2.37, "negative": "music"},
    "empty negative prompt, few steps": {"duration_s": 0.64, "negative": "", "steps": 4},
    "no guidance": {"duration_s": 1.5, "guidance": 0.5, "steps": 7},
    "the longest clip": {"duration_s": 30.0, "steps": 1},
}


def moving_shapes(duration_s: float, size: int) -> np.ndarray:
    """uint8 (T, 3, size, size): drifting blocks of colour."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (3, 8, 8), dtype=np.uint8).repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return np.stack([np.roll(blocks, (2 * i, 3 * i), axis=(1, 2)) for i in range(math.ceil(25 * duration_s))])


def errors(pipeline: Pipeline, bundle: Path, duration_s: float, **options: object) -> list[float]:
    """Relative errors of the stems for `PROMPTS`."""
    frames = moving_shapes(duration_s, pipeline.preset.video.image_size)
    lengths = pipeline.rules.lengths(duration_s)
    shape = (len(PROMPTS), lengths.latent, pipeline.rules.latent_width)
    noise = np.random.default_rng(11).standard_normal(shape, dtype=np.float32)
    session = Session(bundle)
    stems = session.generate(session.encode_frames(frames, duration_s), PROMPTS, noise=noise, **options)
    found = []
    for prompt, start, stem in zip(PROMPTS, noise, stems, strict=True):
        want = pipeline(frames, prompt, duration_s=duration_s, noise=start, **options)
        assert stem.audio.shape == want.shape == (lengths.samples,)
        assert np.linalg.norm(want) > 0.01 * math.sqrt(lengths.samples)  # not just silence
        found.append(float(np.linalg.norm(stem.audio - want) / np.linalg.norm(want)))
    return found


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("demo")


@pytest.mark.parametrize("case", CASES)
def test_float32_stems_equal_the_reference(pipeline: Pipeline, demo_bundle: Path, case: str) -> None:
    assert max(errors(pipeline, demo_bundle, **CASES[case])) <= 1e-3


@pytest.mark.parametrize("case", CASES)
def test_float16_stems_are_close_to_the_reference(pipeline: Pipeline, demo_bundle_fp16: Path, case: str) -> None:
    assert -20 * math.log10(max(errors(pipeline, demo_bundle_fp16, **CASES[case]))) >= 35


def test_the_prompt_changes_the_stem(pipeline: Pipeline) -> None:
    """Otherwise the comparisons above would pass with any prompt."""
    frames = moving_shapes(0.64, 64)
    a, b = (pipeline(frames, prompt, duration_s=0.64, steps=4) for prompt in PROMPTS)
    assert np.linalg.norm(a - b) > 0.05 * np.linalg.norm(a)


def test_the_adaptive_solver_agrees_with_many_euler_steps(pipeline: Pipeline) -> None:
    frames = moving_shapes(0.64, 64)
    fine, coarse = (pipeline(frames, "rain", duration_s=0.64, steps=n, guidance=0.0) for n in (200, 10))
    adaptive = pipeline(frames, "rain", duration_s=0.64, solver="adaptive", guidance=0.0)
    assert np.linalg.norm(fine - adaptive) < 0.2 * np.linalg.norm(coarse - adaptive)


@pytest.mark.full_size
@pytest.mark.parametrize(("precision", "bar"), [("fp32", 1e-3), ("fp16", 10 ** (-35 / 20))])
def test_small_16k_stems(tmp_path: Path, precision: str, bar: float) -> None:
    preset = selva_ref.get_preset("small_16k")
    out = tmp_path / precision
    export_bundle(ExportRequest(preset=preset, precision=precision, checkpoints=None, out=out))
    assert max(errors(Pipeline(preset), out, duration_s=1.0)) <= bar
