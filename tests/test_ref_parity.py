"""Compares the reference and its deployment form with the original networks (`tests/data`), to 1e-4 in float32."""

from __future__ import annotations

import pytest
import torch
from oracle import TOLERANCE, expected, load, relative_error, tensor
from torch import Tensor

import selva_ref
from selva_export.rewrites import rewrite
from selva_ref.model.flow_matching import euler
from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.video_encoder import segment
from selva_ref.model.vocoder import lowpass_filter


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return tensor("input.video", 2, 24, 3, 224, 224).tanh()


def test_video_encoder(frames: Tensor) -> None:
    want = expected("video_encoder")
    encoder = load("video_encoder", "small_16k", "video_enc_sup_5")
    text = tensor("input.text_t5", 2, 9, 768)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False

    projected, seen = encoder.project_text(text, mask)
    assert seen[:, :5].all()
    assert relative_error(projected, want["text_proj"]) <= TOLERANCE

    # the split into text-free backbone and text-conditioned selection ...
    tokens = encoder.backbone(segment(frames, encoder.config))
    grid = tokens[:1, : 8 * 196].reshape(1, 8, 14, 14, 768)
    assert relative_error(grid[:, :, ::7, ::7], want["backbone_every_7th"]) <= TOLERANCE
    assert float(grid.mean()) == pytest.approx(float(want["backbone_mean"]), abs=1e-5)
    assert float(grid.std()) == pytest.approx(float(want["backbone_std"]), rel=1e-4)
    split = encoder.select(tokens, text, mask)
    assert relative_error(split, want["sync_features"]) <= TOLERANCE
    # ... also gives the same result one segment at a time
    by_segment = torch.cat([encoder.select(part, text, mask) for part in tokens.chunk(2, dim=1)], dim=1)
    assert relative_error(by_segment, split.numpy()) <= 1e-5
    rewrite(encoder)
    assert relative_error(encoder(frames, text, mask), want["sync_features"]) <= TOLERANCE


def test_teacher(frames: Tensor) -> None:
    teacher = load("teacher", "small_16k", "synchformer_visual")
    features = teacher(segment(frames[:1], teacher.config))
    assert relative_error(features, expected("teacher")["features"]) <= TOLERANCE


@pytest.mark.parametrize("preset", ["small_16k", "small_44k", "large_44k_v2"])
def test_generator(preset: str) -> None:
    check_generator(preset, "a", batch=2, negative=False)


def test_generator_with_negative_prompt() -> None:
    check_generator("small_16k", "negative", batch=1, negative=True)


def check_generator(preset: str, case: str, *, batch: int, negative: bool) -> None:
    want = expected(f"generator_{preset}_{case}")
    generator = load("generator", preset, f"generator_{preset}")
    latent_length, clip_length, sync_length = (int(n) for n in want["lengths"])
    sync = tensor(f"input.sync.{case}", batch, sync_length, 768)
    text = 0.2 * tensor(f"input.text_clip.{case}", batch, 77, 1024)
    against = 0.2 * tensor("input.negative.negative", 1, 77, 1024) if negative else None
    noise = tensor(f"input.noise.{case}", batch, latent_length, generator.config.latent_width)

    clip = generator.empty_clip(batch, clip_length)
    conditions = generator.prepare(sync, clip, text, latent_length=latent_length)
    empty = generator.prepare_empty(conditions, sync_length=sync_length, negative_text=against)
    for name in ("clip_f", "sync_f", "text_f"):
        if name in want:
            assert relative_error(getattr(conditions, name), want[name]) <= TOLERANCE, name
    if "clip_f_c" in want:
        assert relative_error(generator.clip_cond_proj(conditions.clip_f.mean(1)), want["clip_f_c"]) <= TOLERANCE
        assert relative_error(generator.text_cond_proj(conditions.text_f.mean(1)), want["text_f_c"]) <= TOLERANCE
    for t in (0.0, 0.37, 0.96):
        flow = generator.flow(noise, torch.tensor([t]), conditions)
        assert relative_error(flow, want[f"flow_t{t}"]) <= TOLERANCE, t
    strength = float(want["cfg_strength"])

    def guided(t: float, x: Tensor) -> Tensor:
        return generator.guided_flow(x, torch.tensor([t]), conditions, empty, strength)

    assert relative_error(guided(0.37, noise), want["guided_t0.37"]) <= TOLERANCE
    (key,) = (name for name in want if name.startswith("euler"))
    state = euler(guided, noise, steps=int(key.removeprefix("euler")))
    assert relative_error(state, want[key]) <= TOLERANCE
    assert relative_error(generator.unnormalize(state), want["unnormalized"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("mode", "preset", "width", "bands", "length"),
    [("16k", "small_16k", 20, 80, 40), ("44k", "small_44k", 40, 128, 24)],
)
def test_vae(mode: str, preset: str, width: int, bands: int, length: int) -> None:
    want = expected(f"vae_{mode}_a")
    vae = load("vae", preset, f"vae_{mode}")
    latent = tensor(f"input.latent.{mode}.a", 1, width, length)
    mel = tensor(f"input.mel.{mode}.a", 1, bands, 2 * length) - 2
    mean, std = vae.encode(mel)
    assert relative_error(mean, want["encoded_mean"]) <= TOLERANCE
    assert relative_error(std, want["encoded_std"]) <= TOLERANCE
    assert relative_error(vae.decode(latent), want["decoded"]) <= TOLERANCE
    rewrite(vae)
    assert relative_error(vae.decode(latent), want["decoded"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("mode", "preset", "bands", "length"), [("16k", "small_16k", 80, 24), ("44k", "small_44k", 128, 16)]
)
def test_vocoder(mode: str, preset: str, bands: int, length: int) -> None:
    want = expected(f"vocoder_{mode}_a")["audio"]
    vocoder = load("vocoder", preset, f"bigvgan_{mode}")
    mel = tensor(f"input.mel.{mode}.a", 1, bands, length) - 2
    assert relative_error(vocoder(mel), want) <= TOLERANCE
    assert relative_error(rewrite(vocoder)(mel), want) <= TOLERANCE


def test_vocoder_filter() -> None:
    assert relative_error(lowpass_filter(), expected("vocoder_filter")["filter"]) <= 1e-6


@pytest.mark.parametrize(("mode", "preset"), [("16k", "small_16k"), ("44k", "small_44k")])
def test_mel(mode: str, preset: str) -> None:
    wave = 0.3 * tensor(f"input.wave.{mode}.a", 1, 20000)
    mel = MelSpectrogram(selva_ref.get_preset(preset).audio)(wave)
    assert relative_error(mel, expected(f"mel_{mode}_a")["mel"]) <= TOLERANCE
