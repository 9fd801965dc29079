"""The deployment form of each network equals the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import selva_ref
from selva_export.rewrites import rewrite
from selva_export.rewrites.vocoder import PolyphaseActivation
from selva_ref.model.layers import cast
from selva_ref.model.text import Float32Linear
from selva_ref.model.vocoder import Activation
from selva_ref.weights.loading import load_part

DEMO = selva_ref.get_preset("demo")


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_polyphase_activation() -> None:
    plain = Activation(3).double()
    for value in plain.parameters():
        value.normal_()
    x = torch.randn(2, 3, 17, dtype=torch.double)
    want = plain(x)
    found = PolyphaseActivation(plain)(x[:, :, None])[:, :, 0]
    torch.testing.assert_close(found, want, rtol=2e-6, atol=2e-6)  # the snake itself is float32


def test_video_encoder() -> None:
    encoder = load_part("video_encoder", DEMO, None)
    frames, text, mask = torch.rand(2, 24, 3, 64, 64), torch.randn(2, 4, 64), torch.ones(2, 4, dtype=torch.bool)
    mask[1, 2:] = False
    want = encoder(frames, text, mask)
    rewrite(encoder)
    assert not torch.equal(encoder(frames, text, mask), want)  # it is another form
    torch.testing.assert_close(encoder(frames, text, mask), want, rtol=1e-4, atol=1e-5)


def test_image_tower() -> None:
    """In float16 the softmax, and so the attention's weights, are float32."""
    tower, frames = load_part("clip_image", selva_ref.get_preset("demo_mmaudio"), None), torch.rand(2, 3, 64, 64)
    want = tower(frames)
    rewrite(tower)
    assert not torch.equal(tower(frames), want)
    torch.testing.assert_close(tower(frames), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half", [False, True])
def test_text_towers(half: bool) -> None:
    """T5's feed-forward outputs stay in float32."""
    ids, mask = torch.randint(1, 100, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    for name, inputs in (("text_t5", (ids, mask)), ("text_clip", (torch.randint(1, 100, (2, DEMO.text.clip_tokens)),))):
        tower = cast(load_part(name, DEMO, None), torch.float16 if half else torch.float32)
        want, plain = tower(*inputs), {type(layer) for layer in tower.modules()}
        rewrite(tower)
        assert {nn.Linear, Float32Linear}.isdisjoint(type(layer) for layer in tower.modules())
        assert nn.Linear in plain
        torch.testing.assert_close(tower(*inputs), want, rtol=1e-2 if half else 1e-4, atol=1e-3 if half else 1e-5)


def test_vae_decoder() -> None:
    vae, latent = load_part("vae", DEMO, None), torch.randn(1, 20, 30)
    want = vae.decode(latent)
    rewrite(vae)
    assert "learnable_gain" not in dict(vae.decoder.named_parameters())
    torch.testing.assert_close(vae.decode(latent), want, rtol=1e-4, atol=1e-5)


def test_vocoder() -> None:
    vocoder, mel = load_part("vocoder", DEMO, None), torch.randn(1, 80, 30)
    want = vocoder(mel)
    torch.testing.assert_close(rewrite(vocoder)(mel), want, rtol=1e-4, atol=1e-5)
