"""Shows the rows of the measurement: as a Markdown table, and one stem as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selva_bench.long_form.measures import NEAR_S
from selva_bench.long_form.run import Result
from selva_ref.demo.evaluation.events import FLOOR, HOP, Times, magnitudes, onsets
from selva_ref.demo.world.sounds import RATE_HZ

SHOWN_S, LINE_S = 60, 20
_HEAD = (
    "method",
    "films",
    "F1",
    "precision",
    "recall",
    "offset, ms",
    "leak",
    f"missed within {NEAR_S:g} s of a join",
    "missed elsewhere",
    "step at joins",
    "at controls",
    "drift",
    "CPU s per s of stem",
    "of the short path's",
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats a Markdown table."""
    lines = [_HEAD, ["---"] * len(_HEAD), *map(_cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["method"],
        f"{row['films']} of {row['duration_s']:g} s",
        f"{row['f1']:.3f}",
        f"{row['precision']:.3f}",
        f"{row['recall']:.3f}",
        f"{row['offset_ms']:.1f}",
        f"{row['leak']:.3f}",
        _missed(row["missed_near_joins"]),
        _missed(row["missed_away"]),
        _decimal(row["step_at_joins"]["mean"], 3),
        _decimal(row["step_at_controls"]["mean"], 3),
        _decimal(row["drift"], 2),
        f"{row['cpu_s_per_s']:.2f}",
        f"{row['cpu_ratio']:.2f}",
    ]


def _missed(tally: dict[str, Any]) -> str:
    return f"{round(tally['mean'] * tally['count'])}/{tally['count']}" if tally["count"] else "–"


def _decimal(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def line(method: str, result: Result) -> str:
    """Formats what was found on one film."""
    found, kinds = result.measures, " and ".join(source.kind for source in result.film.scene.sources)
    return (
        f"{method:<34}{result.film.name:<14}F1 {found.score.f1:.3f}  drift {_decimal(found.drift, 2)}  "
        f"{result.cpu_s:.1f} s of CPU time  ({kinds})"
    )


def draw(result: Result, stem: int, out: Path) -> None:
    """Writes a PNG of the first `SHOWN_S` seconds of a stem: its mel magnitudes, joins, true and heard events."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    audio, source = result.audio[stem], result.film.scene.sources[stem]
    mel = magnitudes(audio)
    level = np.log10(mel / mel.max() + FLOOR)
    heard_s = onsets(audio)
    duration_s = min(SHOWN_S, result.film.duration_s)
    lines = int(np.ceil(duration_s / LINE_S))
    figure = Figure(figsize=(10, 0.8 + 1.6 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for number, axes in enumerate(figure.subplots(lines, 1, squeeze=False)[:, 0]):
        first_s, last_s = number * LINE_S, (number + 1) * LINE_S
        shown = level[:, first_s * RATE_HZ // HOP : last_s * RATE_HZ // HOP]
        extent = (first_s, first_s + shown.shape[1] * HOP / RATE_HZ, 0, 1)
        axes.imshow(shown, extent=extent, origin="lower", aspect="auto", cmap="Greys", vmax=0.2)
        axes.vlines(_within(result.joins_s, first_s, last_s), -0.2, 1.2, color="tab:red", lw=1.2, label="join")
        _marks(axes, _within(source.events_s, first_s, last_s), 1.1, "v", "tab:blue", "truly sounds")
        _marks(axes, _within(heard_s, first_s, last_s), -0.1, "^", "tab:green", "heard")
        axes.set(xlim=(first_s, last_s), ylim=(-0.2, 1.2), yticks=[], xticks=range(first_s, last_s + 1, 2))
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("s")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, frameon=False)
    figure.suptitle(f"“{result.film.prompts[stem]}”, mel bands up to 8 kHz", x=0.01, ha="left", fontsize=11)
    figure.savefig(out, dpi=90, format="png")


def _within(times_s: Times, first_s: float, last_s: float) -> Times:
    return times_s[(times_s >= first_s) & (times_s < last_s)]


def _marks(axes: Any, times_s: Times, height: float, marker: str, colour: str, label: str) -> None:
    axes.plot(times_s, np.full(times_s.size, height), marker, color=colour, ms=5, label=label)
