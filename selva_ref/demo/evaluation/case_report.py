"""Answers all questions of `cases` with a run's networks, and compares them with bars: JSON, Markdown and a chart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

import selva_ref
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation import cases
from selva_ref.demo.evaluation.cases import Answer, Question, Stems
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.scores import Judge
from selva_ref.demo.evaluation.texts import TextFeatures, warned_of
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.demo.sampling import sample_stems
from selva_ref.demo.selection import backbone_tokens
from selva_ref.demo.world.kinds import CAPTIONS, KINDS, SCENES, UNSEEN_CAPTIONS
from selva_ref.demo.world.scenes import SAMPLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Pairs = Mapping[tuple[str, str], Score]
Sample = Callable[[Tensor, Tensor, int], Stems]
"""Sync features (B, S*8, D), text features (B, L, E) and a seed → stems (B, samples)."""
F1_BAR, LEAK_BAR, ABSENT_BAR, UNKNOWN_BAR = 0.95, 0.1, 0.9, 0.8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All answers, and what the runtime says about the texts."""

    pairs: list[Answer]
    absent: list[Answer]
    unknown: list[Answer]
    phrases: list[Answer]
    equal: list[Answer]
    warned: list[bool]
    """For each text of `unknown`."""
    warned_of_captions: float
    """Share of all captions of the world, trained with or not, in all scenes of words, for which it warns too."""

    @property
    def with_target(self) -> list[Answer]:
        """The answers in which something should be heard, and nothing else."""
        return [*self.pairs, *self.phrases]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A row of the table."""

    case: str
    name: str
    value: float
    bar: float | None
    """None: it is only documented."""
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the value reaches the bar."""
        if self.bar is None:
            return None
        return self.value <= self.bar if self.at_most else self.value >= self.bar


def find(run: DemoRun, judge: Judge, seed: int) -> Findings:
    """Asks all questions; the scenes follow from `seed`."""
    generator = run.load(selva_ref.build("generator", PRESET), "generator")
    normal_db, tests = cases.normal_levels(seed), run.plan.tests

    def sample(sync_BND: Tensor, text_BLD: Tensor, seed: int) -> Stems:
        vae, vocoder, length = judge.vae, judge.vocoder, judge.latent_length
        return sample_stems(generator, vae, vocoder, sync_BND, text_BLD, latent_length=length, seed=seed)

    make = stems_by(run, sample)

    def ask(questions: Callable[[int, int], list[Question]]) -> list[Answer]:
        return cases.answers(judge, questions(tests, seed), make, normal_db, run.seed)

    unknown = ask(cases.unknown_questions)
    captions = [text for texts in (CAPTIONS, UNSEEN_CAPTIONS) for kind in KINDS for text in texts[kind]]
    return Findings(
        pairs=ask(cases.pair_questions),
        absent=ask(cases.absent_questions),
        unknown=unknown,
        phrases=ask(cases.phrase_questions),
        equal=ask(cases.equal_questions),
        warned=warned_of(run, [one.question.text for one in unknown]),
        warned_of_captions=float(np.mean(warned_of(run, [s.format(text) for s in SCENES for text in captions]))),
    )


def stems_by(run: DemoRun, sample: Sample) -> Callable[[Sequence[Question], int], Stems]:
    """Answers questions with what `sample` makes of the trained encoder's features."""
    teacher = run.load(selva_ref.build("teacher", PRESET), "teacher")
    encoder = run.load(selva_ref.build("video_encoder", PRESET), "video_encoder")
    clip = run.load(selva_ref.build("text_clip", PRESET), "text_clip")

    @torch.no_grad()
    def make(questions: Sequence[Question], seed: int) -> Stems:
        texts = [question.text for question in questions]
        t5 = TextFeatures.of(run, texts)
        scenes = {id(question.scene): question.scene for question in questions}
        tokens = backbone_tokens(teacher, torch.stack([scene.frames for scene in scenes.values()]))
        rows = [list(scenes).index(id(question.scene)) for question in questions]
        sync = encoder.select(tokens[rows], t5.t5, t5.mask)
        return sample(sync, run.prompts.clip_features(clip, texts), seed)[:, :SAMPLES]

    return make


# -- numbers ----------------------------------------------------------------------------------------------------------


def measures(found: Findings) -> list[Measure]:
    """Every number that has a bar, and those that are only documented."""
    pairs = cases.by_pair(found.pairs)
    kinds = cases.by_kind(pairs)
    worst = min(kinds, key=lambda kind: kinds[kind].f1)
    phrases, equal = Score.total([one.score for one in found.phrases]), cases.both_heard(found.equal)
    both = Score.total([score for pair, score in pairs.items() if set(pair) == {"ball", "hammer"}])
    count = f"each of {len(pairs)} ordered pairs"
    return [
        Measure(case="a known kind that is not shown", name="silent", value=silent(found.absent), bar=ABSENT_BAR),
        Measure(case="a word for something unknown", name="silent", value=silent(found.unknown), bar=UNKNOWN_BAR),
        Measure(case="a word for something unknown", name="warned of", value=float(np.mean(found.warned)), bar=1.0),
        Measure(case="a caption of the world", name="warned of", value=found.warned_of_captions, bar=0.0, at_most=True),
        Measure(case="ball and hammer in one scene", name="F1", value=both.f1, bar=F1_BAR),
        Measure(case="ball and hammer in one scene", name="leak", value=both.leak, bar=LEAK_BAR, at_most=True),
        Measure(case=count, name="lowest F1", value=min(s.f1 for s in pairs.values()), bar=F1_BAR),
        Measure(case=count, name="highest leak", value=max(s.leak for s in pairs.values()), bar=LEAK_BAR, at_most=True),
        Measure(case=count, name="share that meets both bars", value=_good_share(pairs), bar=None),
        Measure(case=f"each kind; the worst is {worst}", name="lowest F1", value=kinds[worst].f1, bar=F1_BAR),
        Measure(case="a phrase kept out of training", name="F1", value=phrases.f1, bar=0.9),
        Measure(case="a phrase kept out of training", name="leak", value=phrases.leak, bar=None),
        Measure(case="a phrase kept out of training", name="right kind", value=phrases.kind, bar=None),
        Measure(case="two equal things", name="onsets of both F1", value=equal.f1, bar=None),
        Measure(case="two equal things", name="right kind", value=equal.kind, bar=None),
    ]


def silent(found: Sequence[Answer]) -> float:
    """Share of the answers that are silent."""
    return float(np.mean([one.silent for one in found]))


def _good_share(pairs: Pairs) -> float:
    return float(np.mean([score.f1 >= F1_BAR and score.leak <= LEAK_BAR for score in pairs.values()]))


def case_numbers(found: Findings, numbers: Callable[[Score], dict[str, float]]) -> dict[str, Any]:
    """The findings for JSON: `kinds`, `pairs` (by target, then other), `cases` and what each text gave."""
    pairs = cases.by_pair(found.pairs)
    tree: dict[str, dict[str, object]] = {}
    for (target, other), score in pairs.items():
        tree.setdefault(target, {})[other] = numbers(score)
    silences = {"absent kinds": found.absent, "unknown words": found.unknown}
    return {
        "kinds": {kind: numbers(score) for kind, score in cases.by_kind(pairs).items()},
        "pairs": tree,
        "cases": measure_numbers(measures(found)),
        "relative_level_db": {
            name: [f"{one.question.text}: {one.relative_db:.1f}" for one in answers]
            for name, answers in silences.items()
        },
        "phrases": {one.question.text: numbers(one.score) for one in found.phrases},
    }


def measure_numbers(rows: Sequence[Measure]) -> list[dict[str, Any]]:
    """Rows for JSON."""
    return [{**asdict(row), "value": round(row.value, 4), "met": row.met} for row in rows]


def measure_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats a Markdown table of `measure_numbers`."""
    lines = ["| case | measure | value | bar | met |", "|---|---|---|---|---|"]
    for row in rows:
        bar = "none" if row["bar"] is None else f"{'≤' if row['at_most'] else '≥'} {row['bar']:.3g}"
        met = {None: "", True: "yes", False: "**no**"}[row["met"]]
        lines.append(f"| {row['case']} | {row['name']} | {row['value']:.3f} | {bar} | {met} |")
    return "\n".join(lines)


def case_tables(report: Mapping[str, Any]) -> str:
    """Formats three Markdown tables of `case_numbers`: the cases, the kinds and the pairs."""
    lines = [measure_table(report["cases"])]
    lines += ["", "| kind | target onsets F1 ↑ | other source's onsets heard ↓ | mean offset, ms ↓ | right kind ↑ |"]
    lines.append("|---|---|---|---|---|")
    for kind, s in report["kinds"].items():
        lines.append(f"| {kind} | {s['f1']:.2f} | {s['leak']:.2f} | {s['offset_ms']:.0f} | {s['kind']:.2f} |")
    lines += ["", f"| target, F1 / leak beside | {' | '.join(KINDS)} |", f"|---|{'---|' * len(KINDS)}"]
    for target in KINDS:
        row = report["pairs"].get(target, {})
        cells = [f"{s['f1']:.2f} / {s['leak']:.2f}" if (s := row.get(other)) else "" for other in KINDS]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


# -- chart ------------------------------------------------------------------------------------------------------------


def draw_cases(found: Findings, path: Path) -> None:
    """Draws the pairs as two heat maps, and the cases as bars with a line at each bar."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (f1, leak, bars) = plt.subplots(
        1, 3, figsize=(16, 5), layout="constrained", gridspec_kw={"width_ratios": (1, 1, 1.1)}
    )
    pairs = cases.by_pair(found.pairs)
    for panel, name, colours, title in (
        (f1, "f1", "viridis", "target onsets F1"),
        (leak, "leak", "viridis_r", "other's onsets heard"),
    ):
        values = np.array([[getattr(pairs[t, o], name) if (t, o) in pairs else np.nan for o in KINDS] for t in KINDS])
        panel.imshow(values, cmap=colours, vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                dark = (value < 0.6) == (name == "f1")
                panel.text(
                    column, row, f"{value:.2f}", ha="center", va="center", color="w" if dark else "k", fontsize=8
                )
        panel.set_xticks(range(len(KINDS)), KINDS, rotation=45)
        panel.set_yticks(range(len(KINDS)), KINDS)
        panel.set_xlabel("other thing in the frame")
        panel.set_ylabel("target")
        panel.set_title(title)
    _draw_bars(bars, measures(found))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=90, format="png")
    plt.close(figure)


def _draw_bars(panel: Axes, rows: Sequence[Measure]) -> None:
    colours = {None: "tab:gray", True: "tab:green", False: "tab:red"}
    places = range(len(rows))
    drawn = panel.barh(places, [row.value for row in rows], color=[colours[row.met] for row in rows])
    panel.bar_label(drawn, [f"{row.value:.2f}" for row in rows], padding=2, fontsize=8)
    for place, row in zip(places, rows, strict=True):
        if row.bar is not None:
            panel.plot([row.bar, row.bar], [place - 0.45, place + 0.45], color="k")
    panel.set_yticks(places, [f"{row.case}: {row.name}" for row in rows], fontsize=8)
    panel.set_xlim(0, 1.15)
    panel.invert_yaxis()
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title("cases; a line marks each bar")
