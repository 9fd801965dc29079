"""Extraction: what it computes, what it skips, and that it resumes where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import clips as media
import numpy as np
import pytest
import torch
from train_crash import CrashingReader
from train_samples import CLIPS, DURATION_S, LABELS, tone, write_checkpoints, write_videos

from selva_ref.model.mel import MelSpectrogram
from selva_ref.model.presets import get_preset
from selva_ref.model.video_encoder import segment
from selva_ref.pipeline import preprocess, sequence_rules
from selva_ref.training.data import extract as extraction
from selva_ref.training.data.clips import read_example
from selva_ref.training.data.extract import Extracted, ExtractRequest, extract
from selva_ref.training.data.listing import read_lists
from selva_ref.training.data.sound import read_sound
from selva_ref.training.data.store import Features
from selva_ref.training.errors import SkippedClip, TrainingError
from selva_ref.weights.loading import load_part, load_tokenizers

PRESET = get_preset("demo")
RULES = sequence_rules(PRESET)
LENGTHS = RULES.lengths(DURATION_S)
ARRAYS = ("posterior", "teacher", "text_t5", "text_t5_tokens", "text_clip")


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> ExtractRequest:
    folder = tmp_path_factory.mktemp("extract")
    videos, path = write_videos(folder)
    return ExtractRequest(
        preset=PRESET,
        videos=videos,
        lists=(path,),
        checkpoints=write_checkpoints(folder / "checkpoints", PRESET),
        out=folder / "data",
        duration_s=DURATION_S,
    )


@pytest.fixture(scope="module")
def extracted(request_: ExtractRequest) -> Extracted:
    return extract(request_, quiet)


def quiet(_stage: str, _done: int, _total: int) -> None:
    pass


def same_files(one: Path, other: Path) -> bool:
    names = [f"{name}.npy" for name in ARRAYS] + ["outcome.tsv", "skipped.tsv"]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_bad_clips_are_skipped_counted_and_listed(request_: ExtractRequest, extracted: Extracted) -> None:
    assert extracted.ready == CLIPS
    assert extracted.skipped == {"silent": 2, "short": 1, "broken": 1, "missing": 1}
    assert str(extracted).startswith("8 clips ready, 5 skipped (1 broken, 1 missing, 1 short, 2 silent): ")
    lines = [line.split("\t") for line in extracted.skipped_list.read_text().splitlines()]
    assert lines[0] == ["id", "label", "kind", "reason"]
    assert [line[:3] for line in lines[1:]] == [
        ["hushed", LABELS[0], "silent"],
        ["mute", LABELS[0], "silent"],
        ["short", LABELS[0], "short"],
        ["broken", LABELS[0], "broken"],
        ["gone", LABELS[0], "missing"],
    ]
    assert "0.72 s of video, but 0.96 s are needed" in lines[3][3]
    assert str(request_.videos / "gone.mp4") in lines[5][3]


@torch.inference_mode()
def test_features_are_those_of_the_networks(request_: ExtractRequest, extracted: Extracted) -> None:
    features = Features(request_.out)
    assert features.rows == list(range(CLIPS))
    example = read_example(features.video(3), RULES, DURATION_S)
    mel = MelSpectrogram(PRESET.audio)(torch.from_numpy(example.wave)[None])
    mean, deviation = load_part("vae", PRESET, request_.checkpoints).encode(mel)
    assert mean.shape == (1, RULES.latent_width, LENGTHS.latent)
    assert features.posterior(3)[0] == pytest.approx(mean[0].T.numpy(), abs=1e-5)
    assert features.posterior(3)[1] == pytest.approx(deviation[0].T.numpy(), abs=1e-5)
    video = segment(preprocess(torch.from_numpy(example.frames), RULES.image_size)[None], PRESET.video)
    teacher = load_part("teacher", PRESET, request_.checkpoints)(video).reshape(LENGTHS.sync, -1)
    assert features.teacher(3) == pytest.approx(teacher.numpy(), rel=2e-3, abs=1e-3)  # stored as float16
    tokenizers = load_tokenizers(PRESET, request_.checkpoints)
    ids = torch.tensor([tokenizers["t5"].encode(LABELS[1]).ids])
    t5 = load_part("text_t5", PRESET, request_.checkpoints)(ids, torch.ones_like(ids, dtype=torch.bool))
    text = features.text(3)
    assert text.t5_mask.sum() == ids.shape[1]
    assert text.t5[text.t5_mask] == pytest.approx(t5[0].numpy(), abs=1e-5)
    assert not text.t5[~text.t5_mask].any()
    ids = torch.tensor([tokenizers["clip"].encode(LABELS[1]).ids])
    assert text.clip == pytest.approx(load_part("text_clip", PRESET, request_.checkpoints)(ids)[0].numpy(), abs=1e-5)


def test_worker_processes_give_the_same_files(request_: ExtractRequest, extracted: Extracted, tmp_path: Path) -> None:
    extract(replace(request_, out=tmp_path / "data", workers=2), quiet)
    assert same_files(request_.out, tmp_path / "data")


def interrupted(at: int) -> Callable[[str, int, int], None]:
    def progress(_stage: str, done: int, _total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("torn", [False, True], ids=["interrupted", "cut in a line"])
def test_resumes_where_it_was_cut(request_: ExtractRequest, extracted: Extracted, tmp_path: Path, torn: bool) -> None:
    request = replace(request_, out=tmp_path / "data")
    with pytest.raises(KeyboardInterrupt):
        extract(request, interrupted(at=5))
    with pytest.raises(TrainingError, match=r"8 clips are not extracted yet; run selva-train extract again"):
        Features(request.out)
    journal = request.out / "outcome.tsv"
    assert len(journal.read_text().splitlines()) == 5
    if torn:
        journal.write_text(journal.read_text()[:-2])
    seen: list[int] = []
    extract(request, lambda _stage, done, _total: seen.append(done))
    assert seen[0] == (4 if torn else 5)
    assert same_files(request_.out, request.out)


def test_a_decoder_that_crashes_is_a_broken_clip(
    request_: ExtractRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "Reader", CrashingReader)
    result = extract(replace(request_, out=tmp_path / "data", workers=2), quiet)
    assert (result.ready, result.skipped["broken"]) == (6, 3)
    assert "c5\train on a roof\tbroken\t" in result.skipped_list.read_text()


def test_another_request_does_not_mix_with_the_first(request_: ExtractRequest, extracted: Extracted) -> None:
    with pytest.raises(TrainingError, match="was started with another preset, duration"):
        extract(replace(request_, duration_s=0.72), quiet)


def test_no_usable_clip_is_an_error(request_: ExtractRequest, tmp_path: Path) -> None:
    path = tmp_path / "list.tsv"
    path.write_text("id\tlabel\nbroken\tdog\ngone\train\n")
    with pytest.raises(TrainingError, match=r"no clip is usable; .*skipped.tsv gives the reasons, the first is: "):
        extract(replace(request_, lists=(path,), out=tmp_path / "data"), quiet)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\nx,dog\n", "its first line must name the columns id and label"),
        ("id\tlabel\n", "lists no clips"),
        ("id\tlabel\nx\t\n", "line 2: needs an id and a label"),
        ("id\tlabel\nx\tdog\n../../x\tdog\n", r"line 3: '../../x' is not a file name"),
        ("id\tlabel\nx\tdog\nx\train\n", "clip x is listed twice"),
        ("id\tlabel\n\xff\tdog\n", "not a TSV file in UTF-8"),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.tsv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingError, match=message):
        read_lists([path])


@pytest.mark.parametrize("start_s", [0, 1])
def test_sound_is_aligned_with_the_first_picture(tmp_path: Path, start_s: int) -> None:
    sound = media.click(1, at_s=0.5, rate_hz=48000) + tone(1, 100) / 100
    pictures = (media.numbered(frame) for frame in range(25))
    path = media.write_video(tmp_path / "click.mkv", pictures, sound=sound, sound_codec="flac", start_s=start_s)
    wave = read_sound(path, rate_hz=16000, start_s=start_s, samples=15360)
    assert wave.shape == (15360,)
    assert np.abs(wave).argmax() == pytest.approx(8000, abs=2 + 16)  # Matroska rounds times to milliseconds


def test_sound_with_damage_or_without_enough(tmp_path: Path) -> None:
    pictures = [media.numbered(frame) for frame in range(25)]
    path = media.write_video(tmp_path / "x.mkv", pictures[:15], sound=tone(0.6, 300), sound_codec="flac")
    with pytest.raises(SkippedClip, match=r"0.60 s of sound, but 0.96 s are needed"):
        read_sound(path, rate_hz=16000, start_s=0, samples=15360)
    whole = media.write_video(tmp_path / "y.mkv", pictures, sound=tone(1, 300), sound_codec="flac").read_bytes()
    damaged = tmp_path / "damaged.mkv"
    half = len(whole) // 2
    damaged.write_bytes(whole[:half] + bytes(len(whole) // 4) + whole[half + len(whole) // 4 :])
    with pytest.raises(SkippedClip):
        read_example(damaged, RULES, DURATION_S)
