"""The results of an evaluation: scores as JSON, the table as Markdown, and a chart of it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import selva_ref
from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.ablations import VARIANTS, Variant, features_of, generator_of
from selva_ref.demo.evaluation.case_report import case_numbers, case_tables, draw_cases, find
from selva_ref.demo.evaluation.events import Score
from selva_ref.demo.evaluation.scores import (
    Judge,
    TestScene,
    composed_tests,
    make_stems,
    mixed_tests,
    score_stems,
    table,
    test_tokens,
)
from selva_ref.demo.evaluation.worst import draw_worst, worst
from selva_ref.demo.models.audio import SoundBank, log_mel_errors
from selva_ref.demo.models.listener import Listener
from selva_ref.demo.run import PRESET, DemoRun
from selva_ref.pipeline import sequence_rules
from selva_ref.weights.checkpoints import file_sha256, read_checkpoint

TEST_SEED = 1_000_003
"""Far from all seeds of the training clips."""
MEASURES = (
    ("target onsets F1", "f1"),
    ("other's onsets heard", "leak"),
    ("mean offset, ms", "offset_ms"),
    ("right kind", "kind"),
)


def judge_of(run: DemoRun) -> Judge:
    """Loads the finished autoencoder, vocoder and listener of a run."""
    listener = Listener(PRESET.audio.mel_bands)
    listener.load_state_dict(read_checkpoint(run.file("listener")))
    return Judge(
        vae=run.load(selva_ref.build("vae", PRESET), "vae"),
        vocoder=run.fast(run.load(selva_ref.build("vocoder", PRESET), "vocoder")),
        mel=run.mel,
        listener=listener.eval(),
        prompts=run.prompts,
        text_features=run.captions[1],
        latent_length=sequence_rules(PRESET).lengths(PRESET.duration_s).latent,
    )


def evaluate(run: DemoRun) -> str:
    """Scores the full recipe and the hard cases; returns the tables. `evaluate_ablations` adds the other variants.

    Writes `evaluation.{json,md,png}`, and of the cases `cases.png` and `worst.png`.
    """
    court = EvaluationData.of(run)
    rows = {VARIANTS[0].name: court.scores(run, VARIANTS[0])}
    sounds = SoundBank(run.mel, min(32, run.plan.sounds // 4), run.seed + TEST_SEED)
    errors = log_mel_errors(court.judge.vocoder, run.mel, sounds.mels_BMT)
    found = find(run, court.judge, run.seed + TEST_SEED)
    report = {
        "command": "selva-train demo",
        "seed": run.seed,
        "scenes": run.plan.tests,
        "vocoder_log10_mel_l1": round(errors[0], 4),
        "vocoder_log10_mel_l1_where_loud": round(errors[1], 4),
        "rows": {},
        "true_sounds": {test: numbers(_truth(court.judge, scenes)) for test, scenes in court.tests.items()},
        **case_numbers(found, numbers),
    }
    draw_cases(found, run.folder / "cases.png")
    draw_worst(worst(found.with_target), run.folder / "worst.png")
    return _write_report(run, report, rows)


def evaluate_ablations(run: DemoRun) -> str:
    """Scores every variant that is trained, and adds them to the report of `evaluate`; returns the tables."""
    report = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))
    return _write_report(run, report, EvaluationData.of(run).all_scores(run))


def _write_report(run: DemoRun, report: dict[str, Any], rows: dict[str, dict[str, Score]]) -> str:
    """Writes `evaluation.{json,md,png}` with these rows of variants, and returns the tables."""
    report["rows"] = {name: {test: numbers(s) for test, s in scores.items()} for name, scores in rows.items()}
    text = f"{table(rows)}\n\n{case_tables(report)}"
    _write(run.folder / "evaluation.json", json.dumps(report, indent=1) + "\n")
    _write(run.folder / "evaluation.md", text + "\n")
    draw(rows, run.folder / "evaluation.png")
    return text


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The judge, the test sets and their backbone tokens, which are the same for every variant."""

    judge: Judge
    tests: dict[str, list[TestScene]]
    tokens: dict[str, Tensor]

    @classmethod
    def of(cls, run: DemoRun) -> EvaluationData:
        """Makes both test sets of a run."""
        count, seed = run.plan.tests, run.seed + TEST_SEED
        tests = {"mixed": mixed_tests(count, seed), "composed": composed_tests(count, seed)}
        teacher = run.load(selva_ref.build("teacher", PRESET), "teacher")
        return cls(judge=judge_of(run), tests=tests, tokens={n: test_tokens(teacher, s) for n, s in tests.items()})

    def all_scores(self, run: DemoRun) -> dict[str, dict[str, Score]]:
        """Scores every variant whose networks are trained, by name."""
        return {v.name: self.scores(run, v) for v in VARIANTS if run.file(v.generator).exists()}

    def scores(self, run: DemoRun, variant: Variant) -> dict[str, Score]:
        """Scores a variant on each test set. The scores are cached in the run's folder, for exactly these networks."""
        path = run.folder / f"scores_{re.sub('[^a-z]+', '_', variant.name.lower())}.json"
        names = ("teacher", variant.encoder or "teacher", variant.generator, "vae", "vocoder", "listener", "text_t5")
        networks = {name: file_sha256(run.file(name)) for name in (*names, "text_clip")}
        if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8"))).get("networks") == networks:
            return {test: Score(**counts) for test, counts in kept["scores"].items()}
        features, generator = features_of(run, variant), generator_of(run, variant)
        found = {}
        for test, scenes in self.tests.items():
            stems = make_stems(self.judge, generator, features, scenes, self.tokens[test], run.seed)
            found[test] = score_stems(self.judge, scenes, stems)
        scores = {test: asdict(score) for test, score in found.items()}
        _write(path, json.dumps({"networks": networks, "scores": scores}) + "\n")
        return found


def _truth(judge: Judge, scenes: list[TestScene]) -> Score:
    """Scores the true stems the same way: the best that a perfect model could reach."""
    return score_stems(judge, scenes, np.stack([source.sound() for scene in scenes for source in scene.sources]))


def numbers(score: Score) -> dict[str, float]:
    """Counts and measures of a score, for JSON."""
    return {**asdict(score), **{name: round(getattr(score, name), 4) for _, name in MEASURES}}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw(rows: dict[str, dict[str, Score]], path: Path) -> None:
    """Draws the table as bars: one panel per measure, one group per test set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tests = list(next(iter(rows.values())))
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(14, 3.6), layout="constrained", sharey=True)
    for panel, (title, name) in zip(panels, MEASURES, strict=True):
        for offset, test in enumerate(tests):
            places = [index + 0.36 * offset for index in range(len(rows))]
            values = [getattr(scores[test], name) for scores in rows.values()]
            bars = panel.barh(places, values, 0.34, label=test)
            panel.bar_label(
                bars, [f"{v:.0f}" if name == "offset_ms" else f"{v:.2f}" for v in values], padding=2, fontsize=8
            )
        panel.set_title(title, fontsize=10)
        panel.set_yticks([index + 0.18 for index in range(len(rows))], list(rows))
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(x=0.15)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="test set", loc="outside right center", frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
