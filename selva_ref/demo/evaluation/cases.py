"""The hard cases: every pair of kinds in one frame, what the picture does not show, and words that were never read.

A question asks a scene for a text. The answer is a stem, in which the target should be heard and nothing else; without
a target, silence is right. A stem counts as silent if its level is `SILENT_DB` below the normal one of the kind that
was asked for: the mean RMS of that kind's true sounds, over whole clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, zip_longest

import numpy as np
import numpy.typing as npt
import torch

from selva_ref.demo.evaluation.events import Score, score
from selva_ref.demo.evaluation.scores import BATCH, Judge, TestScene
from selva_ref.demo.plan import FULL
from selva_ref.demo.sampling import in_batches
from selva_ref.demo.world.kinds import HELD_OUT, KINDS, UNSEEN_ABSENT, UNSEEN_CAPTIONS, prompt
from selva_ref.demo.world.scenes import SAMPLES, Scene, composed_scene, render, single_scene

PAIRS = tuple(combinations(KINDS, 2))
SCENES_PER_PAIR = 6
ABSENT_QUESTIONS, PHRASES = 40, 40
SILENT_DB = -40.0
_NO_SOUND_DB = -120.0

Stems = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text asked of a scene."""

    scene: TestScene
    text: str
    target: int | None
    """Number of the source that should be heard; None: none should."""
    asked: str | None
    """The kind that the text means; None: none of them."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A stem and what is heard in it."""

    question: Question
    stem: Stems
    """(samples,)."""
    score: Score
    relative_db: float
    """Its level, compared with the normal one of the kind that was asked for."""

    @property
    def silent(self) -> bool:
        """Whether it counts as silent."""
        return self.relative_db < SILENT_DB


# -- questions --------------------------------------------------------------------------------------------------------


def pair_questions(tests: int, seed: int) -> list[Question]:
    """Asks composed scenes of each pair of kinds for both: `SCENES_PER_PAIR` of each, the sides alternate.

    With fewer `tests` than those of the full plan there are fewer scenes, perhaps not of all pairs.
    """
    found = []
    for index in range(_scaled(SCENES_PER_PAIR * len(PAIRS), tests)):
        repeat, pair = divmod(index, len(PAIRS))
        a, b = PAIRS[pair]
        test = _test(composed_scene((seed, 10, index), (a, b) if repeat % 2 == 0 else (b, a)))
        found += [_asked(test, target) for target in range(2)]
    return found


def absent_questions(tests: int, seed: int) -> list[Question]:
    """Asks scenes of one thing, and of two things, for kinds that they do not show. The kinds alternate."""
    found = []
    for index in range(_scaled(ABSENT_QUESTIONS, tests)):
        asked, rng = KINDS[index % len(KINDS)], np.random.default_rng([seed, 11, index])
        first, second = (str(kind) for kind in rng.choice([k for k in KINDS if k != asked], 2, replace=False))
        single = (index // len(KINDS)) % 2 == 0
        scene = single_scene((seed, 11, index), first) if single else composed_scene((seed, 11, index), (first, second))
        found.append(Question(scene=_test(scene), text=prompt(asked), target=None, asked=asked))
    return found


def unknown_questions(tests: int, seed: int) -> list[Question]:
    """Asks composed scenes for things that the world does not have, in phrases that training never read."""
    texts = UNSEEN_ABSENT[: _scaled(len(UNSEEN_ABSENT), tests)]
    scenes = [_test(composed_scene((seed, 12, index))) for index in range(len(texts))]
    return [Question(scene=s, text=text, target=None, asked=None) for s, text in zip(scenes, texts, strict=True)]


def phrase_questions(tests: int, seed: int) -> list[Question]:
    """Asks composed scenes for what they show, in phrases that training never read."""
    found = []
    for index, (kind, text) in enumerate(phrases(_scaled(PHRASES, tests))):
        rng = np.random.default_rng([seed, 13, index])
        other, target = str(rng.choice([k for k in KINDS if k != kind])), index % 2
        scene = composed_scene((seed, 13, index), (kind, other) if target == 0 else (other, kind))
        found.append(Question(scene=_test(scene), text=text, target=target, asked=kind))
    return found


def phrases(count: int) -> list[tuple[str, str]]:
    """Kinds and phrases that are kept out of training: all kinds in turn, those of `HELD_OUT` first, others spread."""
    each = math.ceil(count / len(KINDS))
    by_kind = []
    for kind in KINDS:
        first = [text for text in UNSEEN_CAPTIONS[kind] if text in HELD_OUT]
        rest = [text for text in UNSEEN_CAPTIONS[kind] if text not in HELD_OUT]
        places = np.linspace(0, len(rest) - 1, max(0, each - len(first))).round().astype(int)
        by_kind.append([(kind, text) for text in (*first, *(rest[place] for place in places))])
    turns = (one for turn in zip_longest(*by_kind) for one in turn if one is not None)
    return list(islice(turns, count))


def equal_questions(tests: int, seed: int) -> list[Question]:
    """Asks scenes of two equal things for them. No words tell them apart; the target is the left one."""
    kinds = KINDS[: _scaled(len(KINDS), tests)]
    return [_asked(_test(composed_scene((seed, 14, index), (kind, kind))), 0) for index, kind in enumerate(kinds)]


def _scaled(count: int, tests: int) -> int:
    return max(1, count * tests // FULL.tests)


def _test(scene: Scene) -> TestScene:
    return TestScene(frames=torch.from_numpy(render(scene)), sources=scene.sources)


def _asked(test: TestScene, target: int) -> Question:
    kind = test.sources[target].kind
    return Question(scene=test, text=prompt(kind), target=target, asked=kind)


# -- answers ----------------------------------------------------------------------------------------------------------


def answers(
    judge: Judge,
    questions: Sequence[Question],
    make: Callable[[Sequence[Question], int], Stems],
    normal_db: Mapping[str, float],
    seed: int,
) -> list[Answer]:
    """Answers the questions by `make`, which takes at most `BATCH` of them and a seed, and gives (B, samples)."""

    def stems(rows: slice) -> Stems:
        return make(questions[rows], seed + rows.start)

    made = in_batches(len(questions), BATCH, stems)
    kinds = [KINDS[int(kind)] for kind in judge.kinds_of(made)]
    return [
        answer(question, stem, kind, normal_db) for question, stem, kind in zip(questions, made, kinds, strict=True)
    ]


def answer(question: Question, stem: Stems, sounds_like: str, normal_db: Mapping[str, float]) -> Answer:
    """Scores one stem that sounds like a kind. If no kind was asked for, the normal level is the mean of all."""
    sources = question.scene.sources
    true = [source.events_s for index, source in enumerate(sources) if index == question.target]
    others = [source.events_s for index, source in enumerate(sources) if index != question.target]
    normal = float(np.mean(list(normal_db.values()))) if question.asked is None else normal_db[question.asked]
    found = score(stem, _joined(true), _joined(others), sounds_like == question.asked)
    return Answer(question=question, stem=stem, score=found, relative_db=level_db(stem) - normal)


def _joined(times_s: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    return np.sort(np.concatenate([np.empty(0), *times_s]))


def level_db(audio: Stems) -> float:
    """RMS over all of `audio`, dB of full scale; -120 for digital silence."""
    rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64))))
    return max(_NO_SOUND_DB, 20 * math.log10(rms)) if rms else _NO_SOUND_DB


def normal_levels(seed: int, each: int = 24) -> dict[str, float]:
    """The normal level of each kind, dB of full scale: the mean RMS of its true sounds in `each` clips."""
    found = {}
    for kind in KINDS:
        sounds = [single_scene((seed, 15, index), kind).sources[0].sound(SAMPLES) for index in range(each)]
        rms = [np.sqrt(np.mean(np.square(sound, dtype=np.float64))) for sound in sounds]
        found[kind] = 20 * math.log10(float(np.mean(rms)))
    return found


def both_heard(found: Sequence[Answer]) -> Score:
    """Scores stems against the events of all sources in their scenes, as if all of them were the target."""
    return Score.total(
        [
            score(
                a.stem,
                _joined([source.events_s for source in a.question.scene.sources]),
                np.empty(0),
                bool(a.score.right_kind),
            )
            for a in found
        ]
    )


# -- sums -------------------------------------------------------------------------------------------------------------


def by_pair(found: Sequence[Answer]) -> dict[tuple[str, str], Score]:
    """Sums for each ordered pair (target, other) in the answers."""
    parts: dict[tuple[str, str], list[Score]] = {}
    for one in found:
        target = one.question.target
        assert target is not None
        sources = one.question.scene.sources
        parts.setdefault((sources[target].kind, sources[1 - target].kind), []).append(one.score)
    return {pair: Score.total(scores) for pair, scores in parts.items()}


def by_kind(pairs: Mapping[tuple[str, str], Score]) -> dict[str, Score]:
    """Sums for each kind as the target."""
    found = {kind: [score for (target, _), score in pairs.items() if target == kind] for kind in KINDS}
    return {kind: Score.total(scores) for kind, scores in found.items() if scores}
