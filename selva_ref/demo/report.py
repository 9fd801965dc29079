"""What an evaluation leaves behind: scores as JSON, the table as Markdown, and both as a picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from selva_ref.checkpoints import read_checkpoint, written_whole
from selva_ref.demo.ablations import VARIANTS, features_of, generator_of
from selva_ref.demo.audio_model import SoundBank, log_mel_error
from selva_ref.demo.evaluation import Judge, composed_tests, make_stems, mixed_tests, score_stems, table, test_tokens
from selva_ref.demo.events import Score
from selva_ref.demo.listener import Listener
from selva_ref.demo.workshop import PRESET, Workshop
from selva_ref.pipeline import sequence_rules

TEST_SEED = 1_000_003
"""Far from every seed of the training clips."""
MEASURES = (
    ("target onsets F1", "f1"),
    ("other's onsets heard", "leak"),
    ("mean offset, ms", "offset_ms"),
    ("right kind", "kind"),
)


def judge_of(shop: Workshop) -> Judge:
    """The finished autoencoder, vocoder and listener of a run."""
    listener = Listener(PRESET.audio.mel_bands)
    listener.load_state_dict(read_checkpoint(shop.file("listener")))
    return Judge(
        vae=shop.load("vae"),
        vocoder=shop.load("vocoder"),
        mel=shop.mel,
        listener=listener.eval(),
        prompts=shop.prompts,
        text_features=shop.captions[1],
        latent_length=sequence_rules(PRESET).lengths(PRESET.duration_s).latent,
    )


def evaluate(shop: Workshop, ablations: bool) -> str:
    """Scores every variant that was trained, writes `evaluation.{json,md,png}` and returns the table."""
    judge, teacher = judge_of(shop), shop.load("teacher")
    tests = {
        "mixed": mixed_tests(shop.plan.tests, shop.seed + TEST_SEED),
        "composed": composed_tests(shop.plan.tests, shop.seed + TEST_SEED),
    }
    tokens = {name: test_tokens(teacher, scenes) for name, scenes in tests.items()}
    rows: dict[str, dict[str, Score]] = {}
    for variant in VARIANTS if ablations else VARIANTS[:1]:
        features, generator = features_of(shop, variant), generator_of(shop, variant)
        rows[variant.name] = {
            name: score_stems(judge, scenes, make_stems(judge, generator, features, scenes, tokens[name], shop.seed))
            for name, scenes in tests.items()
        }
    truth = {name: _truth(judge, scenes) for name, scenes in tests.items()}
    sounds = SoundBank(shop.mel, 32, shop.seed + TEST_SEED)
    numbers = {
        "command": "selva-train demo",
        "seed": shop.seed,
        "scenes": shop.plan.tests,
        "vocoder_log_mel_l1": log_mel_error(judge.vocoder, shop.mel, sounds.mels_BMT),
        "rows": {name: {test: _numbers(s) for test, s in scores.items()} for name, scores in rows.items()},
        "true_sounds": {test: _numbers(s) for test, s in truth.items()},
    }
    text = table(rows)
    _write(shop.folder / "evaluation.json", json.dumps(numbers, indent=1) + "\n")
    _write(shop.folder / "evaluation.md", text + "\n")
    draw(rows, shop.folder / "evaluation.png")
    return text


def _truth(judge: Judge, scenes: list) -> Score:
    """The true stems under the same measure: what a perfect model would score."""
    import numpy as np

    return score_stems(judge, scenes, np.stack([source.sound() for scene in scenes for source in scene.sources]))


def _numbers(score: Score) -> dict[str, float]:
    return {**asdict(score), **{name: round(getattr(score, name), 4) for _, name in MEASURES}}


def _write(path: Path, text: str) -> None:
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw(rows: dict[str, dict[str, Score]], path: Path) -> None:
    """The table as bars: one panel a measure, one group a test set."""
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
    panels[-1].legend(title="test set", frameon=False, fontsize=8)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
