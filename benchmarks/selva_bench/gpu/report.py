"""The results of the check as text: a table of times with targets and floors, then what each part found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from selva_bench.gpu.floor import TARGET_CARD, target_s, times_floor
from selva_bench.presentation import seconds
from selva_bench.statistics import STAGES

_WIDTH = 30


def report(document: Mapping[str, Any]) -> str:
    """All results, for a person."""
    lines = [*times(document)]
    for name, part in document["parts"].items():
        lines += ["", f"{name}: {part['status']}, {seconds(part['seconds'])}"]
        lines += [f"  {line}" for line in part_lines(name, part)]
    return "\n".join(lines)


def part_lines(name: str, part: Mapping[str, Any]) -> Iterator[str]:
    """What a part found, a few lines."""
    kind, rows = name.partition(":")[0], part["rows"]
    if part["reason"]:
        yield f"{part['status']}: {part['reason']}"
    if kind == "tests":
        yield from _tests(rows)
    elif kind == "latency":
        yield from _latency(rows)
    elif kind == "profile":
        yield from _profile(rows)
    else:
        for row, value in rows.items():
            yield f"{row:<{_WIDTH}}{_value(value)}"


def _tests(rows: Mapping[str, Any]) -> Iterator[str]:
    skipped = [row for row in rows.values() if "skipped" in row]
    failed = {test: row for test, row in rows.items() if not row["ok"]}
    yield f"{len(rows) - len(skipped) - len(failed)} passed, {len(skipped)} skipped, {len(failed)} failed"
    for reason in dict.fromkeys(row["skipped"] for row in skipped):
        yield f"skipped: {reason}"
    for test, row in failed.items():
        yield f"FAILED {test}: {row['error']}"


def _latency(rows: Mapping[str, Any]) -> Iterator[str]:
    totals = rows.get("warm", {}).get("totals", {})
    for total in ("first_stem", "new_prompt", "4_stems"):
        if total in totals:
            yield f"{total.replace('_', ' '):<{_WIDTH}}{_spread(totals[total])}"


def _profile(rows: Mapping[str, Any]) -> Iterator[str]:
    kinds = rows.get("kinds", {})
    whole = sum(row["seconds"] for row in kinds.values())
    for kind, row in kinds.items():
        share = row["seconds"] / whole if whole else 0.0
        yield f"{kind:<{_WIDTH}}{seconds(row['seconds']):>9} {share:6.1%} {row['launches']:>8} launches"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        found = {key: item for key, item in value.items() if key not in ("ok", "seconds")}
        verdict = {True: "ok", False: "FAILED"}.get(value.get("ok"), "")  # type: ignore[arg-type]
        return " ".join([verdict, *(f"{key} {_value(item)}" for key, item in found.items())]).strip() or _value(
            value.get("seconds")
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def times(document: Mapping[str, Any]) -> Iterator[str]:
    """A row for each stage and total: target, floor, and each side's warm time, distance to the floor and cold time."""
    setting, parts = document["setting"], document["parts"]
    yield f"{setting['gpu'] or 'no GPU'}: {setting['preset']}, {setting['duration_s']:g} s, {setting['steps']} steps"
    if not setting["is_gpu_result"]:
        yield "A DRY RUN ON THE CPU: this is not a GPU result."
    sides = {name.partition(":")[2]: part["rows"] for name, part in parts.items() if name.startswith("latency:")}
    sides = {name: rows for name, rows in sides.items() if "cold" in rows}
    least = parts.get("floor", {}).get("rows", {}).get("seconds", {})
    if not sides:
        return
    yield ""
    yield _row("median [quartiles], ×floor; cold", f"target, {TARGET_CARD.removeprefix('NVIDIA ')}", "floor", sides)
    for kind in ("stages", "totals"):
        names = dict.fromkeys(name for rows in sides.values() for name in rows["cold"][kind])
        for name in sorted(names, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES)):
            target, floor = target_s(name, setting), least.get(name)
            cells = [_cell(rows, kind, name, least) for rows in sides.values()]
            limits = ["" if each is None else seconds(each) for each in (target, floor)]
            yield _row(name.replace("_", " "), limits[0], limits[1], cells)


def _cell(rows: Mapping[str, Any], kind: str, name: str, least: Mapping[str, float]) -> str:
    cold, warm = rows["cold"][kind].get(name), rows.get("warm", {}).get(kind, {}).get(name)
    found = []
    if warm is not None:
        times = times_floor(warm["median_s"], name, least)
        found.append(_spread(warm) + ("" if times is None else f" ×{times:.1f}"))
    if cold is not None:
        found.append(f"cold {seconds(cold)}")
    return "; ".join(found) or "-"


def _spread(row: Mapping[str, float]) -> str:
    return f"{seconds(row['median_s'])} [{seconds(row['low_s'])} to {seconds(row['high_s'])}]"


def _row(label: str, target: str, floor: str, cells: Any) -> str:
    return f"{label:<34}{target:>14}{floor:>10}" + "".join(f"  {cell:<52}" for cell in cells).rstrip()
