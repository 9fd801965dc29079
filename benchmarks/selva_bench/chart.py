"""A chart of the report: where the time of the first stem goes, and what each further stem or prompt costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selva_bench.stages import STAGES
from selva_bench.table import seconds
from selva_bench.totals import AFTER_DECODE

_BAR = 0.8


def draw(document: dict[str, Any], out: Path) -> None:
    """Writes a PNG.

    Raises:
        ImportError: matplotlib (extra `bench`) is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sides = {label: side for label, side in document["sides"].items() if "unavailable" not in side}
    setting = document["setting"]
    figure = Figure(figsize=(12, 2.5 + 0.9 * len(sides)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{setting['preset']} {setting['precision']}, {setting['duration_s']:g} s of video, {setting['steps']} steps, "
        f"{setting['threads']} threads — {document['machine']['gpu'] or document['machine']['cpu']}"
    )
    stages, totals = figure.subplots(1, 2)
    _stages(stages, sides, setting["steps"])
    _totals(totals, sides)
    figure.savefig(out, dpi=110, format="png")


def _stages(axes: Any, sides: dict[str, Any], steps: int) -> None:
    """One stacked bar per side."""
    names = [name for name in STAGES if any(name in side["stages"] for side in sides.values())]
    left = dict.fromkeys(sides, 0.0)
    for name in names:
        widths = [
            side["stages"].get(name, {"median_s": 0.0})["median_s"] * (steps if name == "step" else 1)
            for side in sides.values()
        ]
        label = f"{steps} steps" if name == "step" else name
        axes.barh(list(sides), widths, _BAR, left=list(left.values()), label=label)
        left = {side: start + width for (side, start), width in zip(left.items(), widths, strict=True)}
    axes.set_title("first stem, by stage")
    _finish(axes)


def _totals(axes: Any, sides: dict[str, Any]) -> None:
    """Bars of the totals, one group for each total."""
    names = list(
        dict.fromkeys(name for side in sides.values() for name in side["totals"] if not name.endswith(AFTER_DECODE))
    )
    height = _BAR / len(sides)
    for number, (label, side) in enumerate(sides.items()):
        places = [group + number * height for group in range(len(names))]
        bars = axes.barh(places, [side["totals"][name]["median_s"] for name in names], height, label=label)
        axes.bar_label(bars, [seconds(side["totals"][name]["median_s"]) for name in names], padding=3, fontsize=8)
    middle = (_BAR - height) / 2
    axes.set_yticks([group + middle for group in range(len(names))], [name.replace("_", " ") for name in names])
    axes.margins(x=0.15)
    axes.set_title("in all, median")
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8)
