"""Compares the reference with MMAudio's own code (`tests/data`): networks to 1e-4 in float32, pixels exactly."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from oracle import TOLERANCE, expected, load, official_weights, relative_error, tensor
from torch import Tensor, nn

from selva_ref.errors import CheckpointError
from selva_ref.model.clip_image import ClipImageTower
from selva_ref.model.flow_matching import euler
from selva_ref.model.generator import Conditions, Generator
from selva_ref.model.layers import cast
from selva_ref.model.presets import ImageConfig
from selva_ref.model.video_encoder import segment
from selva_ref.weights.random_weights import normal

TINY = ImageConfig(image_size=28, patch=14, width=64, depth=2, heads=4, output=32)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# -- generator --------------------------------------------------------------------------------------------------------


class Case:
    """One oracle file of a generator, its inputs and its network."""

    def __init__(self, preset: str, case: str, key: str, batch: int) -> None:
        self.want = expected(f"generator_{preset}_mmaudio_{case}")
        self.generator: Generator = load("generator", f"mmaudio_{preset}", f"generator_{preset}")
        self.latent, self.clip_length, self.sync_length = (int(n) for n in self.want["lengths"])
        self.clip = 0.2 * tensor(f"input.clip.{key}", batch, self.clip_length, 1024)
        self.sync = tensor(f"input.sync.{key}", batch, self.sync_length, 768)
        self.text = 0.2 * tensor(f"input.text_clip.{key}", batch, 77, 1024)
        self.noise = tensor(f"input.noise.{key}", batch, self.latent, self.generator.config.latent_width)

    def prepare(self, *, clip: Tensor | None = None, sync: Tensor | None = None) -> Conditions:
        clip, sync = (self.clip if clip is None else clip), (self.sync if sync is None else sync)
        return self.generator.prepare(sync, clip, self.text, latent_length=self.latent)

    def empty(self, negative: Tensor | None = None) -> Conditions:
        return self.generator.prepare_empty(self.prepare(), sync_length=self.sync_length, negative_text=negative)

    def flow(self, t: float, conditions: Conditions) -> Tensor:
        return self.generator.flow(self.noise, torch.tensor([t]), conditions)

    def assert_close(self, out: Tensor, name: str) -> None:
        assert relative_error(out, self.want[name]) <= TOLERANCE, name


@pytest.fixture(scope="module")
def small() -> Case:
    return Case("small_16k", "a", "a", batch=2)


@pytest.mark.parametrize(
    ("preset", "case", "key", "batch"),
    [("small_16k", "a", "a", 2), ("small_16k", "8s", "8s", 1), ("medium_44k", "a", "a", 1)],
)
def test_generator(preset: str, case: str, key: str, batch: int) -> None:
    given = Case(preset, case, key, batch)
    conditions, empty, strength = given.prepare(), given.empty(), float(given.want["cfg_strength"])
    for t in (0.0, 0.37, 0.96):
        given.assert_close(given.flow(t, conditions), f"flow_t{t}")

    def guided(t: float, x: Tensor) -> Tensor:
        return given.generator.guided_flow(x, torch.tensor([t]), conditions, empty, strength)

    given.assert_close(guided(0.37, given.noise), "guided_t0.37")
    (run,) = (name for name in given.want if name.startswith("euler"))
    state = euler(guided, given.noise, steps=int(run.removeprefix("euler")))
    given.assert_close(state, run)
    given.assert_close(given.generator.unnormalize(state), "unnormalized")


def test_conditions_depend_on_the_image_features(small: Case) -> None:
    conditions, generator = small.prepare(), small.generator
    for name in ("clip_f", "sync_f", "text_f"):
        small.assert_close(getattr(conditions, name), name)
    small.assert_close(generator.clip_cond_proj(conditions.clip_f.mean(1)), "clip_f_c")
    small.assert_close(generator.text_cond_proj(conditions.text_f.mean(1)), "text_f_c")


def test_modes_without_some_of_the_conditions(small: Case) -> None:
    no_clip = small.generator.empty_clip(2, small.clip_length)
    no_sync = small.generator.empty_sync(2, small.sync_length)
    one_image = small.clip[:, :1].expand(-1, small.clip_length, -1)
    modes = {
        "no_clip": small.prepare(clip=no_clip),
        "text_only": small.prepare(clip=no_clip, sync=no_sync),
        "image": small.prepare(clip=one_image, sync=no_sync),
    }
    for name, conditions in modes.items():
        small.assert_close(small.flow(0.37, conditions), f"flow_{name}_t0.37")


def test_guidance_with_a_negative_prompt_and_below_one(small: Case) -> None:
    negative, t = 0.2 * tensor("input.negative.a", 2, 77, 1024), torch.tensor([0.37])
    against = small.generator.guided_flow(small.noise, t, small.prepare(), small.empty(negative), 4.5)
    small.assert_close(against, "guided_negative_t0.37")
    small.assert_close(
        small.generator.guided_flow(small.noise, t, small.prepare(), small.empty(), 0.5), "guided_s0.5_t0.37"
    )


# -- video ------------------------------------------------------------------------------------------------------------


def test_sync_features_are_those_of_the_teacher() -> None:
    teacher = load("teacher", "mmaudio_small_16k", "synchformer_visual")
    frames = tensor("input.sync_video.a", 1, 50, 3, 224, 224).tanh()
    features = teacher(segment(frames, teacher.config)).flatten(1, 2)
    assert relative_error(features, expected("synchformer_video_a")["sync_features"]) <= TOLERANCE


def images(key: str, count: int, size: int) -> Tensor:
    """Smooth random images in [0, 1], (count, 3, size, size)."""
    every = -(-size // 4)
    coarse = normal(f"{key}.coarse", count, 3, 4, 4).repeat(every, axis=2).repeat(every, axis=3)
    return torch.sigmoid(torch.from_numpy(normal(key, count, 3, size, size) + 2 * coarse[:, :, :size, :size]))


def outputs_of(layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """A dict that the next forward pass fills with the output of each layer."""
    seen: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    return seen


@pytest.fixture(scope="module")
def tiny() -> ClipImageTower:
    return ClipImageTower(TINY).load_official(official_weights("clip_image_tiny"))


def test_image_tower(tiny: ClipImageTower) -> None:
    want = expected("clip_image_tiny_a")
    blocks = tiny.visual.transformer["resblocks"]
    layers = {"ln_pre": tiny.visual.ln_pre, "block0": blocks[0], "block1": blocks[1], "projected": tiny.visual}
    seen = outputs_of(layers)
    seen["features"] = tiny(images("input.image.tiny.a.28", 3, 28))
    for name, out in seen.items():
        assert relative_error(out, want[name]) <= TOLERANCE, name


def test_image_tower_ignores_pixels_beyond_the_last_whole_patch(tiny: ClipImageTower) -> None:
    """6 rows and columns, as 378 of 384 pixels; also a whole patch more, which the convolution alone would see."""
    want, larger = expected("clip_image_tiny_a"), images("input.image.tiny.a.34", 3, 34)
    seen = outputs_of({"projected": tiny.visual})
    features = tiny(larger)
    assert relative_error(seen["projected"], want["projected_34"]) <= TOLERANCE
    assert relative_error(features, want["features_34"]) <= TOLERANCE
    assert torch.equal(tiny(nn.functional.pad(larger, (0, 14, 0, 14), value=1.0)), features)


@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.full_size)])
def test_image_tower_at_its_official_size(official_tower: ClipImageTower, count: int) -> None:
    """Three images take three times as long; what they share is tested with the tiny tower too."""
    want, visual = expected("clip_image_a"), official_tower.visual
    blocks = visual.transformer["resblocks"]
    layers = {"ln_pre": visual.ln_pre, "block0": blocks[0], "block15": blocks[15], "projected": visual}
    seen = outputs_of(layers)
    features = official_tower(images("input.image.a", 3, 384)[:count])
    for name in ("ln_pre", "block0"):
        assert relative_error(seen[name][:1, ::73], want[f"{name}_every_73rd"]) <= TOLERANCE, name
    assert relative_error(seen["block15"][:, 0], want["block15_cls"][:count]) <= TOLERANCE
    assert relative_error(seen["projected"], want["projected"][:count]) <= TOLERANCE
    assert relative_error(features, want["features"][:count]) <= TOLERANCE


@pytest.fixture(scope="module")
def official_tower() -> ClipImageTower:
    """632.7 million weights, 2.5 GB."""
    return load("clip_image", "mmaudio_small_16k", "clip_image")


def transformers_tower() -> tuple[nn.Module, dict[str, Tensor]]:
    """Transformers' own tower of the tiny size, and its weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        image_size=28,
        patch_size=14,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModelWithProjection(config).eval()
    torch.manual_seed(3)
    for value in model.parameters():
        nn.init.normal_(value, std=0.2)
    return model, dict(model.state_dict())


def test_image_tower_takes_transformers_names() -> None:
    model, weights = transformers_tower()
    others = {
        "logit_scale": torch.tensor(1.0),
        "text_model.final_layer_norm.weight": torch.ones(2),
        "text_projection.weight": torch.ones(2),
        "vision_model.embeddings.position_ids": torch.arange(5)[None],
    }
    tower, frames = ClipImageTower(TINY).load_official(weights | others), images("x", 3, 28)
    pixels = (frames - tower.pixel_mean) / tower.pixel_std
    wanted = nn.functional.normalize(model(pixel_values=pixels).image_embeds, dim=-1)
    assert relative_error(tower(frames), wanted.numpy()) < 1e-5


def test_image_tower_takes_the_official_file_and_reports_what_it_lacks(tiny: ClipImageTower) -> None:
    text = {
        name: torch.ones(2)
        for name in ("token_embedding.weight", "positional_embedding", "transformer.resblocks.0.ln_1.bias")
    } | {"ln_final.bias": torch.ones(2), "text_projection": torch.ones(2), "logit_scale": torch.tensor(1.0)}
    tower = ClipImageTower(TINY).load_official(official_weights("clip_image_tiny") | text)
    frames = images("x", 2, 28)
    assert torch.equal(tower(frames), tiny(frames))
    with pytest.raises(CheckpointError, match=r"missing: visual\.class_embedding"):
        tower.load_official(text)
    _, weights = transformers_tower()
    del weights["vision_model.encoder.layers.0.self_attn.v_proj.bias"]
    with pytest.raises(CheckpointError, match=r"missing: visual\.transformer\.resblocks\.0\.attn\.in_proj_bias; unex"):
        tower.load_official(weights)


def test_image_tower_in_half_precision_keeps_a_residual_stream_that_float16_cannot_hold() -> None:
    weights = official_weights("clip_image_tiny")
    weights["visual.ln_pre.weight"] = weights["visual.ln_pre.weight"] * 3e4
    tower, frames = ClipImageTower(TINY).load_official(weights), images("x", 2, 28)
    wanted = tower(frames)
    seen = outputs_of({"ln_pre": tower.visual.ln_pre})
    got = cast(tower, torch.float16)(frames)
    assert seen["ln_pre"].abs().max() > torch.finfo(torch.float16).max
    assert got.dtype == torch.float32
    assert relative_error(got, wanted.numpy()) < 5e-3


def test_features_are_of_one_frame_each_and_of_length_one(tiny: ClipImageTower) -> None:
    frames = images("x", 3, 28)
    together = tiny(frames)
    alone = torch.cat([tiny(frame[None]) for frame in frames])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-6)
    np.testing.assert_allclose(together.norm(dim=-1).numpy(), 1, atol=1e-6)
