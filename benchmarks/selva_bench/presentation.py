"""Presents the document of a benchmark: as a table for people, and as a JSON file with a chart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selva_bench.statistics import AFTER_DECODE, STAGES
from selva_bundle.atomic import atomic_write, output_error
from selva_bundle.ports import DRAFT
from selva_runtime.backends.executor import EXACT

_LABEL_WIDTH, _WIDTH = 26, 28
_BAR = 0.8


def table(document: dict[str, Any]) -> str:
    """What ran, one row per stage and total, one column per side, then the ratios."""
    return "\n".join(
        [*_heading(document), "", *_columns(document), "", *_floors(document), *_ratios(document)]
    ).rstrip()


def seconds(value: float) -> str:
    """Formats seconds with three significant digits."""
    number, unit = (value * 1e3, "ms") if value < 0.9995 else (value, "s")
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {unit}"


def _heading(document: dict[str, Any]) -> Iterator[str]:
    setting, machine = document["setting"], document["machine"]
    yield (
        f"{setting['preset']} {setting['precision']}, {setting['weights']} weights: {setting['duration_s']:g} s, "
        f"quality {setting['quality']}, {setting['steps']} steps, guidance {setting['guidance']:g}; "
        f"{setting['rounds']} rounds, {setting['threads']} threads"
    )
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB, " if machine["memory_bytes"] else ""
    yield f"{machine['cpu']} ({machine['cpu_kind']}), {machine['cores']} cores, {memory}GPU: {machine['gpu'] or 'none'}"
    libraries = ", ".join(f"{name} {version}" for name, version in machine["libraries"].items())
    yield f"{machine['os']}, Python {machine['python']}, {libraries}"


def _columns(document: dict[str, Any]) -> Iterator[str]:
    sides = {label: side for label, side in document["sides"].items() if "unavailable" not in side}
    yield _row("median [quartiles]", sides)
    yield _row("", (_what(side) for side in sides.values()))
    yield _row("cold start to first stem", (seconds(side["cold"]["total_s"]) for side in sides.values()))
    for kind in ("stages", "totals"):
        names = dict.fromkeys(name for side in sides.values() for name in side[kind])
        for name in sorted(names, key=_order):
            yield _row(name.replace("_", " "), (_spread(side[kind].get(name)) for side in sides.values()))
    for label, show in _EXTRAS:
        cells = [show(side) for side in sides.values()]
        if any(cells):
            yield _row(label, (cell or "-" for cell in cells))
    for label, side in document["sides"].items():
        if "unavailable" in side:
            yield f"{label} is not available here: {side['unavailable']}"


def _floors(document: dict[str, Any]) -> Iterator[str]:
    for label, side in document["sides"].items():
        if floor := side.get("floor"):
            rate = floor["flop_per_s"] / 1e9
            yield f"{label}: its operations, and their time at {rate:.0f} GFLOP/s, this CPU's rate of matrix products:"
            for name, stage in sorted(floor["stages"].items(), key=lambda item: _order(item[0])):
                yield f"  {name:<{_LABEL_WIDTH}}{stage['flop'] / 1e9:>8.1f} GFLOP   {seconds(stage['seconds'])}"


def _ratios(document: dict[str, Any]) -> Iterator[str]:
    for ours, baselines in document["ratios"].items():
        for baseline, found in baselines.items():
            yield f"{baseline} takes this many times as long as {ours} (median of the rounds' ratios, min to max):"
            both = {**found["stages"], **found["totals"]}
            for name in sorted(both, key=_order):
                ratio = both[name]
                spread = f"{ratio['min']:.2f} to {ratio['max']:.2f}"
                yield f"  {name.replace('_', ' '):<{_LABEL_WIDTH}}{ratio['median']:>8.2f}   {spread}"
            if found["snr_db"] is not None:
                yield f"  sounds agree to {found['snr_db']:.0f} dB"


def _order(name: str) -> int:
    """Sorts stages in the order they run, then the totals in their given order."""
    return STAGES.index(name) if name in STAGES else len(STAGES)


def _row(label: str, cells: Any) -> str:
    return f"{label:<{_LABEL_WIDTH}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)


def _what(side: dict[str, Any]) -> str:
    computed = side.get("compute_precision", EXACT)
    return f"{side['backend']} {side['precision']}" + (f" in {computed}" if computed != EXACT else "")


def _spread(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "-"
    if summary["samples"] == 1:
        return seconds(summary["median_s"])
    number, unit = seconds(summary["median_s"]).split()
    scale = 1 if unit == "s" else 1000
    digits = len(number.partition(".")[2])
    low, high = (f"{summary[name] * scale:.{digits}f}" for name in ("low_s", "high_s"))
    return f"{number} [{low}, {high}] {unit}"


def _p99(side: dict[str, Any]) -> str | None:
    p99_s = side["stages"].get("step", {}).get("p99_s")
    return None if p99_s is None else seconds(p99_s)


def _command(side: dict[str, Any], run: str) -> str | None:
    return seconds(side["commands"][run]) if "commands" in side else None


def _gigabytes(count: int | None) -> str | None:
    return None if count is None else f"{count / 1e9:.2f} GB"


_EXTRAS: tuple[tuple[str, Callable[[dict[str, Any]], str | None]], ...] = (
    ("step, 99th percentile", _p99),
    ("real-time factor, 1 stem", lambda side: f"{side['totals']['first_stem']['real_time_factor']:.3f}"),
    ("selva-generate, first run", lambda side: _command(side, "first_run_s")),
    ("second run, new prompt", lambda side: _command(side, "second_run_s")),
    ("peak host memory", lambda side: _gigabytes(side["peak_host_bytes"])),
    ("device memory held", lambda side: _gigabytes(side["device_bytes"])),
)


def name_of(document: dict[str, Any]) -> str:
    """A name such as cpu-small_16k-fp32-avx2: the runtime's sides, preset, precision and kind of CPU, without date."""
    ours, setting = "+".join(document["ratios"]), document["setting"]
    kind = f"{setting['precision']}-{DRAFT}" if setting["quality"] == DRAFT else setting["precision"]
    return f"{ours}-{setting['preset']}-{kind}-{document['machine']['cpu_kind']}"


def save(document: dict[str, Any], folder: Path) -> tuple[Path, Path | None]:
    """Saves the JSON file and the chart, and returns their paths; the chart is None without matplotlib.

    Each is written completely or not at all, and replaces that of the same setting.

    Raises:
        OutputError: the folder cannot be written.
    """
    name = name_of(document)
    path, chart = folder / f"{name}.json", folder / f"{name}.png"
    try:
        with atomic_write(path) as part:
            part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        try:
            with atomic_write(chart) as part:
                draw(document, part)
        except ImportError:
            return path, None
    except OSError as error:
        raise output_error(folder, error) from error
    return path, chart


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
    _draw_stages(stages, sides, setting["steps"])
    _draw_totals(totals, sides)
    figure.savefig(out, dpi=110, format="png")


def _draw_stages(axes: Any, sides: dict[str, Any], steps: int) -> None:
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


def _draw_totals(axes: Any, sides: dict[str, Any]) -> None:
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
