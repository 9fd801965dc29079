"""`selva_ref.build`, its strict loading, and the lengths of every preset."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import manifest_rows

import selva_ref
from selva_ref.errors import CheckpointError
from selva_ref.model.generator import nearest_exact_index
from selva_ref.model.layers import cast
from selva_ref.weights import random_weights

MANIFESTS = {
    ("video_encoder", "small_16k"): "video_enc_sup_5",
    ("teacher", "small_16k"): "synchformer_visual",
    ("vae", "small_16k"): "vae_16k",
    ("vae", "small_44k"): "vae_44k",
    ("vocoder", "small_16k"): "bigvgan_16k",
    ("vocoder", "small_44k"): "bigvgan_44k",
    ("clip_image", "mmaudio_small_16k"): "clip_image",
    **{
        ("generator", f"{system}{p}"): f"generator_{p}"
        for p in ("small_16k", "small_44k", "medium_44k", "large_44k", "large_44k_v2")
        for system in ("", "mmaudio_")
    },
}


def demo(part: str) -> str:
    return "demo_mmaudio" if part == "clip_image" else "demo"


@pytest.mark.parametrize(("part", "preset"), MANIFESTS)
def test_names_and_shapes_are_the_official_ones(part: str, preset: str) -> None:
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in selva_ref.build(part, preset).named_parameters()}
    official = {name: shape for name, shape, kind in manifest_rows(MANIFESTS[part, preset]) if kind == "param"}
    assert ours == official


@pytest.mark.parametrize("part", selva_ref.PARTS)
def test_loading_lists_every_wrong_name(part: str) -> None:
    network = selva_ref.build(part, demo(part))
    good = random_weights.state_dict(network)
    names = [name for name, _ in network.named_parameters()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    bad = dict(good)
    del bad[names[0]]
    bad[names[1]] = torch.zeros(3, 1, 4, 1, 5)
    prefix = "vfeat_extractor." if part == "teacher" else ""
    bad[f"{prefix}surplus.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        network.load_official(bad)
    message = str(caught.value)
    assert all(text in message for text in (names[0], names[1], "surplus.weight", "3x1x4x1x5"))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network.load_official(good)


def test_vocoder_takes_both_namings_of_weight_norm_and_the_nesting() -> None:
    network = selva_ref.build("vocoder", "demo")
    modern = random_weights.state_dict(network)
    old = {
        name.replace(".parametrizations.weight.original0", ".weight_g").replace(
            ".parametrizations.weight.original1", ".weight_v"
        ): value
        for name, value in modern.items()
    }
    assert any(name.endswith("weight_g") for name in old)
    mel = torch.randn(1, 80, 6)
    with torch.no_grad():
        want = network.load_official(modern)(mel)
        assert torch.equal(selva_ref.build("vocoder", "demo").load_official({"generator": old})(mel), want)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="choose one of video_encoder"):
        selva_ref.build("decoder", "demo")
    with pytest.raises(ValueError, match="small_16k"):
        selva_ref.build("vae", "huge")
    with pytest.raises(ValueError, match="preset demo has no image tower"):
        selva_ref.build("clip_image", "demo")


@pytest.mark.parametrize(
    ("part", "in_float32"),
    [
        ("video_encoder", set()),
        ("generator", {"latent_mean", "latent_std", "freqs"}),
        ("vae", {"data_mean", "data_std"}),
        ("vocoder", {"alpha", "beta"}),
        ("clip_image", {"pixel_mean", "pixel_std"}),
    ],
)
def test_cast_keeps_the_small_tables(part: str, in_float32: set[str]) -> None:
    network = cast(selva_ref.build(part, demo(part)), torch.float16)
    found: dict[torch.dtype, set[str]] = {torch.float32: set(), torch.float16: set()}
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        found[value.dtype].add(name.rsplit(".", 1)[-1])
    assert found[torch.float32] == in_float32
    assert found[torch.float16]
    assert not in_float32 & found[torch.float16]


def test_random_weights_follow_from_the_name() -> None:
    a, b = (random_weights.fill("blocks.0.weight", (4, 5)) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, random_weights.fill("blocks.1.weight", (4, 5)))


def test_nearest_exact_index_covers_the_source() -> None:
    index = nearest_exact_index(24 * 8, 250)
    assert index[0] == 0
    assert index[-1] == 191
    assert (index.diff() >= 0).all()
