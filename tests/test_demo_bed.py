"""The demo's mixed track: what trains its networks, what they share with the demo, and how tracks are scored."""

import json
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import selva_ref
from selva_ref.demo.bed import BED, bed_examples, bed_loss, draw_caption, start_bed, train_bed, train_image
from selva_ref.demo.command import demo
from selva_ref.demo.evaluation.bed import BedNetworks, bed_table, evaluate_bed, make_tracks, score_tracks
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.report import judge_of
from selva_ref.demo.evaluation.scores import composed_tests
from selva_ref.demo.fitting import Fit, fit
from selva_ref.demo.models.image_tower import (
    TaughtImageTower,
    draw_frames,
    image_loss,
    kind_vectors,
    picture_tokens,
    shown_kinds,
)
from selva_ref.demo.plan import QUICK
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.demo.world.clip_bank import PICTURES, ClipBank, pair_scenes, single_scenes
from selva_ref.demo.world.kinds import CAPTIONS, KINDS
from selva_ref.weights.checkpoints import read_checkpoint
from selva_ref.weights.loading import load_part

OWN_MB = 6.0
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two steps per stage: all that the mixed track needs, and its own networks."""
    run = DemoRun(folder=tmp_path_factory.mktemp("bed"), plan=QUICK, seed=0)
    for stage in ("text", "vae", "vocoder", "voicing", "teacher", "base"):
        getattr(run, stage)()
    train_image(run)
    train_bed(run)
    return run


@pytest.fixture(scope="module")
def judge(run):
    """A judge whose listener really knows the kinds; 64 soundtracks are enough."""
    taught = DemoRun(folder=run.folder, plan=QUICK, seed=0)
    taught.plan = replace(QUICK, sounds=64, listener=Fit(steps=120, rate=2e-3, ema=0.9))
    taught.listener()
    return judge_of(run)


def test_its_checkpoints_are_those_that_the_preset_asks_for(run):
    for part in selva_ref.SYSTEM_PARTS["mmaudio"]:
        load_part(part, BED, run.folder)
    assert not list(run.folder.glob("*.state"))


def test_its_own_networks_are_small():
    own = sum(
        value.numel() for part in ("clip_image", "generator") for value in selva_ref.build(part, BED).parameters()
    )
    assert 2 * own < OWN_MB * 1e6  # as float16


def test_the_decoder_is_shared_with_the_demo(run):
    own, base = read_checkpoint(run.file("bed")), read_checkpoint(run.file("mmaudio"))
    assert all(torch.equal(own[name], base[name]) for name in ("latent_mean", "latent_std"))


def test_the_empty_text_is_that_of_no_words(run):
    text = run.load(selva_ref.build("text_clip", PRESET), "text_clip")
    (nothing,) = run.prompts.clip_features(text, [""])
    assert torch.equal(read_checkpoint(run.file("bed"))["empty_string_feat"], nothing)


def test_everything_else_in_the_generator_can_be_trained(run):
    generator = selva_ref.build("generator", BED)
    start_bed(generator, torch.zeros_like(generator.empty_string_feat), read_checkpoint(run.file("mmaudio")))
    fixed = {name for name, value in generator.named_parameters() if not value.requires_grad}
    assert fixed == {"latent_mean", "latent_std", "empty_string_feat"}


def test_examples_have_one_row_for_each_clip_and_the_sound_of_all_sources(run):
    examples = bed_examples(run)
    assert len(examples) == QUICK.clips + QUICK.pairs
    assert {len(scene.sources) for scene in examples.scenes[: QUICK.clips]} == {1}
    assert {len(scene.sources) for scene in examples.scenes[QUICK.clips :]} == {2}
    assert examples.sync.shape == (len(examples), 96, BED.generator.sync_width)
    assert examples.clip.shape == (len(examples), 33, BED.generator.clip_width)
    last = examples.scenes[-1]
    np.testing.assert_array_equal(last.sound(), last.sources[0].sound() + last.sources[1].sound())
    mel = run.mel(torch.from_numpy(last.sound())[None])
    with torch.no_grad():
        mean, _ = run.load(selva_ref.build("vae", PRESET), "vae").encode(mel)
    torch.testing.assert_close(examples.mean[-1:], mean.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_pictures_are_the_first_frames_at_or_after_each_tick(run):
    assert PICTURES[:6].tolist() == [0, 4, 7, 10, 13, 16]
    assert len(PICTURES) == 33
    assert PICTURES[-1] == 100
    tower = run.load(selva_ref.build("clip_image", BED), "clip_image")
    frames = run.bank.frames[:2]
    with torch.no_grad():
        tokens, direct = picture_tokens(tower, frames), tower(frames[1, PICTURES[2:3]] / 255)
    torch.testing.assert_close(tokens[1, 2:3], direct)


def test_captions_name_none_some_or_all_of_the_sounds():
    (scene,) = pair_scenes(1, 3)
    kinds = {source.kind for source in scene.sources}
    rng, counts = np.random.default_rng(0), Counter()
    for _ in range(300):
        parts = [part for part in draw_caption(rng, scene).split(", ") if part]
        named = [kind for part in parts for kind in kinds if any(words in part for words in CAPTIONS[kind])]
        assert len(named) == len(set(named)) == len(parts)
        counts[len(parts)] += 1
    assert set(counts) == {0, 1, 2}
    assert min(counts.values()) > 70
    assert all(draw_caption(rng, scene, whole=True).count(", ") == 1 for _ in range(20))


@torch.no_grad()
def test_examples_without_a_picture_do_not_see_it(run):
    generator, examples, rows = run.load(selva_ref.build("generator", BED), "bed"), bed_examples(run), np.array([0, 9])
    torch.manual_seed(0)
    for value in generator.parameters():
        value.add_(0.05 * torch.randn_like(value))
    other = replace(examples, sync=examples.sync + 1, clip=examples.clip.flip(0))
    text = run.captions[1][:2]

    def loss(examples, unseen):
        return bed_loss(generator, examples, rows, np.array(unseen), text, np.random.default_rng(2))

    assert loss(examples, [True, True]) == loss(other, [True, True])
    assert loss(examples, [True, False]) != loss(other, [True, False])
    assert loss(examples, [True, True]) != loss(examples, [False, True])


def test_a_trained_image_tower_tells_what_is_in_the_picture(run, tmp_path):
    """Other frames of the few clips that it saw for 60 steps."""
    torch.manual_seed(0)
    taught = TaughtImageTower(selva_ref.build("clip_image", BED), torch.eye(len(KINDS), BED.generator.clip_width))
    bank = ClipBank([*single_scenes(8, 1), *pair_scenes(4, 1)])
    shown = shown_kinds(bank)
    assert shown.sum(1).tolist() == [1.0] * 8 + [2.0] * 4
    assert shown[:8].argmax(1).tolist() == list(range(8))

    def loss(step):
        frames, items = draw_frames(bank, np.random.default_rng(step), 32)
        return image_loss(taught, frames, shown[items])

    fit("image", taught, loss, Fit(steps=60, rate=3e-3, warmup=10, ema=0.9, bf16=True), tmp_path / "state")
    frames, items = draw_frames(bank, np.random.default_rng(1000), 64)
    with torch.no_grad():
        right = (taught(frames) > 0) == (shown[items] > 0)
    assert right.all(1).float().mean() > 0.9


def test_each_kind_has_its_own_unit_vector(run):
    vectors = kind_vectors(run.prompts, run.captions[1])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(KINDS)))
    assert (vectors @ vectors.T - torch.eye(len(KINDS))).max() < 0.9


def test_tracks_depend_on_picture_and_caption(run, judge):
    networks, frames = BedNetworks.of(run), [test.frames for test in composed_tests(2, 5)]
    torch.manual_seed(0)
    with torch.no_grad():  # two steps of training leave a flow near zero
        for value in networks.generator.parameters():
            value.add_(0.05 * torch.randn_like(value))

    def track(frames, caption, networks=networks):
        return make_tracks(networks, judge, frames, [caption], seed=0)

    one = track(frames[:1], "dog")
    assert one.shape == (1, 66560)
    np.testing.assert_array_equal(one, track(frames[:1], "dog"))
    blind = replace(networks, tower=lambda pictures: torch.zeros(len(pictures), BED.generator.clip_width))
    for other in (
        track(frames[1:], "dog"),
        track(frames[:1], "bell"),
        track(None, "dog"),
        track(frames[:1], "dog", blind),
    ):
        assert np.abs(one - other).max() > 1e-3


def test_scores_want_the_onsets_and_the_kinds_of_both_sources(judge):
    tests = composed_tests(12, 5)
    sources = [test.sources for test in tests]

    def scored(*tracks):
        return score_tracks(judge, sources, np.stack(tracks))

    true = scored(*(one.sound() + other.sound() for one, other in sources))
    assert true.f1 > 0.88
    assert true.kind > 0.75
    half = scored(*(one.sound() for one, _ in sources))
    assert half.f1 < 0.8
    silent = scored(*np.zeros((12, 66560), np.float32))
    assert (silent.hits, silent.heard, silent.kind) == (0, 0, 0.0)
    beeps = np.zeros((12, 66560), np.float32)
    for track, pair in zip(beeps, sources, strict=True):
        for event_s in np.concatenate([source.events_s for source in pair]):
            start = round(event_s * 16000)
            track[start : start + 1600] = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(1600) / 16000)[: 66560 - start]
    right_times = scored(*beeps)
    assert right_times.f1 > 0.8
    assert right_times.kind < 0.5  # all of one kind


def test_the_evaluation_has_a_row_for_each_input_and_for_the_true_sound(run, judge):
    text = evaluate_bed(run)
    found = json.loads((run.folder / "bed_evaluation.json").read_text())
    assert list(found["rows"]) == [
        "video",
        "video and caption",
        "caption alone",
        "caption, video of another scene",
        "the true sound",
    ]
    assert found["rows"]["the true sound"]["f1"] > 0.88
    assert found["rows"]["video"]["f1"] < 0.6  # two steps teach nothing
    assert found["kind_from_caption_alone"] < 0.5
    assert text.count("\n") == 6


def test_the_command_trains_what_is_missing(run):
    run.file("bed").unlink()
    before = run.file("clip_image").stat().st_mtime_ns
    done = CliRunner().invoke(demo, ["--out", str(run.folder), "--quick", "--only", "bed"])
    assert done.exit_code == 0, done.output
    assert run.file("bed").exists()
    assert run.file("clip_image").stat().st_mtime_ns == before


def test_the_docs_have_the_measured_scores():
    found = json.loads((ROOT / "benchmarks" / "results" / "demo_bed_scores.json").read_text())["rows"]
    counts = {field.name for field in fields(Score)}
    rows = {name: Score(**{k: v for k, v in row.items() if k in counts}) for name, row in found.items()}
    assert bed_table(rows) in (ROOT / "docs" / "demo-model.md").read_text()
    (row,) = re.findall(r"^\| demo's \[mixed track\].*$", (ROOT / "docs" / "status.md").read_text(), re.MULTILINE)
    assert f"F1 {rows['video'].f1:.2f} without a caption" in row
