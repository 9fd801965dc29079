"""The worst stems of an evaluation as pictures: what was shown, what was made, and when each source truly sounded."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from selva_bundle.atomic import atomic_write
from selva_ref.demo.evaluation.cases import Answer
from selva_ref.demo.evaluation.events import HOP, magnitudes, onsets
from selva_ref.demo.world.scenes import DURATION_S, FRAMES
from selva_ref.demo.world.sounds import RATE_HZ

COUNT = 10
STRIP_FRAMES = 8
FLOOR_DB = -60.0
COLOURS = 64
"""Few, so that the file is small enough for the documentation."""


def worst(answers: Sequence[Answer], count: int = COUNT) -> list[Answer]:
    """The answers with the lowest F1; of equal ones those with the highest leak, then those of the wrong kind."""
    return sorted(answers, key=lambda one: (one.score.f1, -one.score.leak, one.score.kind))[:count]


def draw_worst(answers: Sequence[Answer], path: Path) -> None:
    """Draws a film strip, a mel spectrogram and the waveform of each answer, with true events and heard onsets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from PIL import Image

    columns = 2
    rows = -(-len(answers) // columns)
    figure = plt.figure(figsize=(13, 3.1 * rows + 0.5), layout="constrained")
    for part, one in zip(figure.subfigures(rows, columns, squeeze=False).flat, answers, strict=False):
        strip, mel, wave = part.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (1.5, 2, 1), "hspace": 0})
        score, question = one.score, one.question
        names = " and ".join(source.kind for source in question.scene.sources)
        strip.set_title(f"{question.text!r} of {names}: F1 {score.f1:.2f}, leak {score.leak:.2f}", fontsize=9)
        strip.imshow(film_strip(one), extent=(0, DURATION_S, 0, 1), aspect="auto")
        level = 20 * np.log10(magnitudes(one.stem) + 1e-6)
        end_s = level.shape[1] * HOP / RATE_HZ
        peak = max(float(level.max()), FLOOR_DB)
        mel.imshow(
            level,
            origin="lower",
            aspect="auto",
            extent=(0, end_s, 0, 1),
            vmin=peak + FLOOR_DB,
            vmax=peak,
            cmap="gray_r",
        )
        wave.plot(np.arange(one.stem.size)[::8] / RATE_HZ, one.stem[::8], color="0.4", linewidth=0.5)
        wave.set_ylim(-1, 1)
        for index, source in enumerate(question.scene.sources):
            colour = "tab:green" if index == question.target else "tab:red"
            for panel in (mel, wave):
                panel.vlines(source.events_s, *panel.get_ylim(), color=colour, linewidth=1.2)
        wave.plot(onsets(one.stem), np.full(onsets(one.stem).size, 0.8), "kv", markersize=5)
        wave.set_xlim(0, DURATION_S)
        for panel in (strip, mel, wave):
            panel.set_yticks([])
            panel.tick_params(labelsize=7)
    figure.legend(
        handles=[
            Line2D([], [], color="tab:green", label="target's events"),
            Line2D([], [], color="tab:red", label="other source's events"),
            Line2D([], [], color="k", marker="v", linestyle="", label="heard onsets"),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    drawn = BytesIO()
    figure.savefig(drawn, dpi=70, format="png")
    plt.close(figure)
    with atomic_write(path) as temporary:
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(temporary, format="png", optimize=True)


def film_strip(answer: Answer) -> np.ndarray:
    """`STRIP_FRAMES` frames of the answer's scene side by side, each the middle one of its part: (H, W', 3) uint8."""
    middles = ((np.arange(STRIP_FRAMES) + 0.5) * FRAMES / STRIP_FRAMES).astype(int)
    out: np.ndarray = np.concatenate([answer.question.scene.frames[i].movedim(0, -1).numpy() for i in middles], axis=1)
    return out
