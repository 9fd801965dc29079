"""The hard cases of the demo: what is asked, what counts as silent, sums over pairs, bars, the worst stems' picture."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from selva_ref.demo.bounds import HEARS, HEARS_NOT, bounds
from selva_ref.demo.evaluation import cases, scores
from selva_ref.demo.evaluation.case_report import Findings, case_numbers, case_tables, draw_cases, measures
from selva_ref.demo.evaluation.cases import Answer, Question
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.report import numbers
from selva_ref.demo.evaluation.worst import draw_worst, film_strip, worst
from selva_ref.demo.plan import FULL
from selva_ref.demo.world.kinds import ABSENT, CAPTIONS, HELD_OUT, KINDS, UNSEEN_ABSENT, UNSEEN_CAPTIONS, prompt
from selva_ref.demo.world.scenes import FRAMES, SAMPLES, composed_scene, single_scene

SEED = 77
NORMAL_DB = dict.fromkeys(KINDS, -25.0)


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """Scenes are not rendered: only their sources matter here."""
    monkeypatch.setattr(cases, "render", lambda scene: np.zeros((1, 3, 1, 1), np.uint8))


def pair_test(kinds: tuple[str, str], seed: int = 0) -> scores.TestScene:
    frames = torch.arange(FRAMES, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64)
    return scores.TestScene(frames=frames, sources=composed_scene((9, seed), kinds).sources)


def question(target=0, kinds=("ball", "hammer")) -> Question:
    asked = None if target is None else kinds[target]
    return Question(scene=pair_test(kinds), text="a text", target=target, asked=asked)


def made(score: Score, target=0, kinds=("ball", "hammer"), relative_db=0.0) -> Answer:
    stem = np.zeros(SAMPLES, np.float32)
    return Answer(question=question(target, kinds), stem=stem, score=score, relative_db=relative_db)


GOOD = Score(hits=10, heard=10, true=10, others=10, right_kind=1, stems=1)
BAD = Score(hits=5, heard=10, true=10, leaks=5, others=10, stems=1)

# -- questions --------------------------------------------------------------------------------------------------------


def test_every_ordered_pair_is_asked_three_times_from_both_sides():
    asked = cases.pair_questions(FULL.tests, SEED)
    assert len(asked) == 2 * 6 * 28
    pairs = Counter((q.asked, q.scene.sources[1 - q.target].kind) for q in asked)
    assert set(pairs) == {(a, b) for a in KINDS for b in KINDS if a != b}
    assert set(pairs.values()) == {6}
    assert {q.target for q in asked if q.asked == "ball"} == {0, 1}
    assert all(q.text == prompt(q.asked) and q.scene.sources[q.target].kind == q.asked for q in asked)


def test_absent_kinds_are_not_shown():
    asked = cases.absent_questions(FULL.tests, SEED)
    assert len(asked) == 40
    assert set(Counter(q.asked for q in asked).values()) == {5}
    assert all(q.asked not in {source.kind for source in q.scene.sources} and q.target is None for q in asked)
    assert {len(q.scene.sources) for q in asked} == {1, 2}


def test_unknown_words_and_phrases_were_never_trained_with():
    unknown, known = cases.unknown_questions(FULL.tests, SEED), cases.phrase_questions(FULL.tests, SEED)
    assert [q.text for q in unknown] == list(UNSEEN_ABSENT)
    assert not set(UNSEEN_ABSENT) & set(ABSENT)
    assert len({q.text for q in known}) == 40
    assert set(Counter(q.asked for q in known).values()) == {5}
    assert set(HELD_OUT) <= {q.text for q in known}
    for q in known:
        assert q.text in UNSEEN_CAPTIONS[q.asked]
        assert q.text not in CAPTIONS[q.asked]
        assert [source.kind == q.asked for source in q.scene.sources].index(True) == q.target


def test_the_same_seed_asks_the_same_and_a_small_plan_asks_little():
    for ask in (cases.pair_questions, cases.absent_questions, cases.phrase_questions, cases.equal_questions):
        first, again, other = ask(2, SEED), ask(2, SEED), ask(2, SEED + 1)
        assert 1 <= len(first) <= 14
        assert [q.text for q in first] == [q.text for q in again]
        events = [[q.scene.sources[0].events_s.tolist() for q in asked] for asked in (first, again, other)]
        assert events[0] == events[1] != events[2]


# -- silence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain_db", "silent"), [(0, False), (-39.5, False), (-40.5, True), (-200, True)])
def test_a_stem_is_silent_40_db_below_its_kind(gain_db, silent):
    """A sine whose RMS is the normal level of the kind, then quieter."""
    sine = np.sqrt(2) * 10 ** (NORMAL_DB["ball"] / 20) * np.sin(2 * np.pi * 500 * np.arange(SAMPLES) / 16000)
    found = cases.answer(question(), (sine * 10 ** (gain_db / 20)).astype(np.float32), "ball", NORMAL_DB)
    assert found.relative_db == pytest.approx(max(gain_db, -95), abs=0.01)
    assert found.silent is silent


def test_digital_silence_has_a_level():
    assert cases.level_db(np.zeros(10, np.float32)) == -120


def test_the_normal_level_is_that_of_true_sounds():
    normal_db = cases.normal_levels(SEED)
    assert normal_db == cases.normal_levels(SEED)
    for index, kind in enumerate(KINDS):
        scene = single_scene((1, index), kind)
        found = cases.answer(
            Question(
                scene=scores.TestScene(frames=torch.empty(0), sources=scene.sources), text="", target=0, asked=kind
            ),
            scene.sound(),
            kind,
            normal_db,
        )
        assert abs(found.relative_db) < 12  # sounds of a kind differ in number and voice
        assert found.score.f1 == 1
        assert found.score.kind == 1


def test_an_unknown_word_is_compared_with_the_mean_of_all_kinds():
    normal_db = {**NORMAL_DB, "ball": -33.0}
    found = cases.answer(question(None), np.full(SAMPLES, 10 ** (-66 / 20), np.float32), "dog", normal_db)
    assert found.relative_db == pytest.approx(-66 + 26, abs=0.01)
    assert found.score.kind == 0
    assert found.score.true == 0


# -- answers ----------------------------------------------------------------------------------------------------------


class EchoJudge:
    """Names the kind whose number is the stem's first sample."""

    def kinds_of(self, stems):
        return stems[:, 0].astype(int)


def test_answers_come_in_batches_in_order():
    asked, sizes = [question(index % 2) for index in range(20)], []

    def make(questions, seed):
        sizes.append((len(questions), seed))
        stems = np.zeros((len(questions), SAMPLES), np.float32)
        stems[:, 0] = [KINDS.index(q.asked) for q in questions]
        return stems

    found = cases.answers(EchoJudge(), asked, make, NORMAL_DB, 5)
    assert sizes == [(16, 5), (4, 21)]
    assert [a.question for a in found] == asked
    assert all(a.score.kind == 1 for a in found)


def test_true_sounds_answer_well_and_the_mix_leaks():
    q = question()
    target, other = (source.sound() for source in q.scene.sources)
    clean, mixed = (cases.answer(q, stem, "ball", NORMAL_DB) for stem in (target, target + other))
    assert (clean.score.f1, clean.score.leak) == (1, 0)
    assert mixed.score.leak == 1
    assert cases.both_heard([mixed]).f1 >= 0.9
    assert cases.both_heard([clean]).f1 < 0.9


def test_sums_by_pair_and_kind():
    found = [made(GOOD), made(BAD), made(GOOD, 1), made(BAD, 0, ("ball", "dog"))]
    pairs = cases.by_pair(found)
    assert pairs["ball", "hammer"] == Score.total([GOOD, BAD])
    assert pairs["hammer", "ball"] == GOOD
    assert set(pairs) == {("ball", "hammer"), ("hammer", "ball"), ("ball", "dog")}
    kinds = cases.by_kind(pairs)
    assert kinds == {"ball": Score.total([GOOD, BAD, BAD]), "hammer": GOOD}


# -- report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def findings():
    """Nine of ten absent kinds and half of the unknown words are silent; one of three ordered pairs is bad."""
    return Findings(
        pairs=[made(GOOD), made(GOOD, 1), made(BAD, 0, ("ball", "dog"))],
        absent=[made(Score(), None, relative_db=-41.0 if k else -39.0) for k in range(10)],
        unknown=[made(Score(), None, relative_db=-30.0 - 20 * k) for k in range(2)],
        phrases=[made(GOOD), made(BAD)],
        equal=[made(GOOD, 0, ("ball", "ball"))],
        warned=[True, True],
        warned_of_captions=0.0,
    )


def test_measures_and_bars(findings):
    found = {(m.case, m.name): (m.value, m.met) for m in measures(findings)}
    assert found["a known kind that is not shown", "silent"] == (0.9, True)
    assert found["a word for something unknown", "silent"] == (0.5, False)
    assert found["a word for something unknown", "warned of"] == (1.0, True)
    assert found["a caption of the world", "warned of"] == (0.0, True)
    assert found["ball and hammer in one scene", "F1"] == (1.0, True)
    assert found["ball and hammer in one scene", "leak"] == (0.0, True)
    assert found["each of 3 ordered pairs", "lowest F1"] == (0.5, False)
    assert found["each of 3 ordered pairs", "highest leak"] == (0.5, False)
    assert found["each of 3 ordered pairs", "share that meets both bars"] == (pytest.approx(2 / 3), None)
    assert found["each kind; the worst is ball", "lowest F1"] == (0.75, False)
    assert found["a phrase kept out of training", "F1"] == (0.75, False)
    assert found["two equal things", "onsets of both F1"][1] is None


def test_the_table_names_every_pair_and_what_is_not_met(findings):
    text = case_tables(case_numbers(findings, numbers))
    assert "| a word for something unknown | silent | 0.500 | ≥ 0.8 | **no** |" in text
    assert "| ball and hammer in one scene | leak | 0.000 | ≤ 0.1 | yes |" in text
    assert "| ball |  | 1.00 / 0.00 | 0.50 / 0.50 |  |  |  |  |  |" in text
    assert "| hammer | 1.00 / 0.00 |" in text


def test_the_numbers_are_json_with_every_text(findings):
    found = json.loads(json.dumps(case_numbers(findings, numbers)))
    assert found["pairs"]["ball"]["dog"]["leak"] == 0.5
    assert found["kinds"]["hammer"]["f1"] == 1
    row = {"case": "ball and hammer in one scene", "name": "F1", "value": 1.0, "bar": 0.95, "at_most": False}
    assert {**row, "met": True} in found["cases"]
    assert found["relative_level_db"]["unknown words"] == ["a text: -30.0", "a text: -50.0"]


def test_the_chart_is_drawn(findings, tmp_path):
    draw_cases(findings, tmp_path / "cases.png")
    assert (tmp_path / "cases.png").stat().st_size > 10_000


# -- the worst stems --------------------------------------------------------------------------------------------------


def test_the_worst_have_the_lowest_f1_then_the_highest_leak():
    leaky, half = replace(GOOD, leaks=4), replace(GOOD, hits=5)
    found = [made(score) for score in (GOOD, leaky, half, BAD, replace(GOOD, right_kind=0))]
    assert [a.score for a in worst(found, 4)] == [BAD, half, leaky, replace(GOOD, right_kind=0)]
    assert len(worst(found * 4)) == 10


def test_the_film_strip_shows_eight_frames_in_order():
    strip = film_strip(made(GOOD))
    assert strip.shape == (64, 8 * 64, 3)
    assert strip[0, ::64, 0].tolist() == [6, 19, 32, 45, 58, 71, 84, 97]


def test_the_picture_is_small(tmp_path):
    found = []
    for index in range(10):
        asked = replace(question(index % 2), scene=pair_test(("tap", "bell"), index))
        noise = 0.01 * np.random.default_rng(index).standard_normal(SAMPLES, dtype=np.float32)
        found.append(cases.answer(asked, asked.scene.sources[0].sound() + noise, "tap", NORMAL_DB))
    draw_worst(found, tmp_path / "worst.png")
    assert 50_000 < (tmp_path / "worst.png").stat().st_size <= 400_000


# -- what the bundle says ---------------------------------------------------------------------------------------------


def test_the_bundle_names_what_the_world_does_not_have():
    assert set(HEARS_NOT) <= set(ABSENT)
    assert tuple(prompt(kind) for kind in KINDS) == HEARS
    assert bounds(t5=True)["hears_not"] == list(HEARS_NOT)
    assert "hears_not" not in bounds(t5=False)
