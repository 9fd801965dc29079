"""The demo bundle that comes with the runtime really selects: onsets heard in its stems against the scenes' events."""

from itertools import chain, product
from pathlib import Path

import numpy as np
import pytest

import selva_runtime
from selva_export.bundle import ExportRequest, _bounds
from selva_ref import get_preset
from selva_ref.demo.events import Score, score
from selva_ref.demo.kinds import CAPTIONS, KINDS, prompt
from selva_ref.demo.kinds import SCENES as AROUND
from selva_ref.demo.world import DURATION_S, composed_scene, render
from selva_runtime import Session
from selva_runtime.bundle import Bundle

SHIPPED = Path(selva_runtime.__file__).with_name("demo_bundle")
SCENES = 6


@pytest.fixture(scope="module")
def session():
    return Session(SHIPPED, backend="cpu")


def test_it_is_small_trained_and_says_that_it_is_a_toy(session):
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= 25e6
    Bundle.open(SHIPPED)
    assert session.info.weights == "trained"
    assert "toy" in session.info.notice.lower()


def test_what_it_hears_is_what_an_export_would_say():
    def said(preset, checkpoints):
        return _bounds(ExportRequest(preset=get_preset(preset), precision="fp32", checkpoints=checkpoints, out=SHIPPED))

    manifest = Bundle.open(SHIPPED).manifest
    assert said("demo", SHIPPED) == {"hears": list(manifest.hears), "words": list(manifest.words)}
    assert said("demo", None) == said("small_16k", SHIPPED) == {}  # noise, and a model that knows all words


def test_it_warns_of_words_that_it_does_not_know(session):
    (warning,) = session.prompt_warnings("Dragon roaring, a loud dragon!")
    heard = ", ".join(prompt(kind) for kind in KINDS)
    assert warning == f"the demo model does not know 'dragon', 'roaring'; it hears: {heard}"


def test_it_warns_of_no_word_that_it_was_trained_with(session):
    for caption, scene in product(chain(*CAPTIONS.values()), AROUND):
        assert session.prompt_warnings(scene.format(caption.upper())) == ()


@pytest.fixture(scope="module")
def scores(session):
    """Scores of each source's stem, and of the same stem held against the other source."""
    own, swapped = [], []
    for index in range(SCENES):
        scene = composed_scene((424242, index))
        clip = session.encode_frames(render(scene), DURATION_S)
        stems = session.generate(clip, [prompt(source.kind) for source in scene.sources], seed=index)
        for source, other, stem in zip(scene.sources, scene.sources[::-1], stems, strict=True):
            own.append(score(stem.audio, source.events_s, other.events_s, True))
            swapped.append(score(stem.audio, other.events_s, source.events_s, True))
    return Score.total(own), Score.total(swapped)


def test_a_stem_has_its_source_and_not_the_other(scores):
    own, swapped = scores
    assert own.f1 >= 0.6
    assert own.leak <= 0.3
    assert own.offset_ms <= 50
    assert swapped.f1 < own.f1 - 0.2  # the measure itself tells the two sources apart


def test_a_picture_that_never_moves_gives_other_sounds(session):
    """Timing comes from the picture: the same prompts on one frozen frame do not find the events."""
    found = []
    for index in range(3):
        scene = composed_scene((424242, index))
        frames = render(scene)
        clip = session.encode_frames(np.repeat(frames[:1], len(frames), axis=0), DURATION_S)
        stems = session.generate(clip, [prompt(source.kind) for source in scene.sources], seed=index)
        found += [
            score(stem.audio, source.events_s, np.empty(0), True)
            for source, stem in zip(scene.sources, stems, strict=True)
        ]
    assert Score.total(found).f1 < 0.5
