"""Edits of a JSON document: replaces values, removes, renames and doubles names, changes numbers slightly."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

Place = tuple[str | int, ...]

RAW = {
    name: f"@{name}@"
    for name in ("1e400", "-1e400", "NaN", "Infinity", "1" + "0" * 5000, "[" * 100_000, "[" * 100_000 + "]" * 100_000)
} | {'{"a":' * 50_000 + "1" + "}" * 50_000: "@deep objects@", '"\\ud800"': "@lone surrogate@"}
"""Values that `json.dumps` cannot write, by the placeholder text that stands for them."""
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 3, 7, 100, 255, 1000, 65_537, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(0.5, 1.5, -0.0, 1e-320, 1e308, -1e308, "@1e400@", "@NaN@"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", " ", "0", "../x", "/etc/passwd", "a\0b", "two\nlines", "x" * 100_000, "é" * 300),
    *("uint9", "object", "float16", "float64", "<U4", "V8", "M8[s]", "i4,i4"),
    *("2*stems", "0*stems", "-1*stems", "*", "even", "shown"),
    *([], {}, [[]], [None], [1], ["x"], {"a": 1}, [0] * 10_000),
    *RAW.values(),
)


@dataclass(kw_only=True)
class Document:
    """A document under attack, and a record of its edits."""

    value: Any
    done: list[str] = field(default_factory=list)
    touched: list[Place] = field(default_factory=list)
    doubled: str | None = None
    """A name to write twice."""

    def text(self) -> bytes:
        """The document as text to write."""
        written = json.dumps(self.value)
        for raw, mark in RAW.items():
            written = written.replace(json.dumps(mark), raw)
        if self.doubled is not None:
            name = json.dumps(self.doubled)
            written = written.replace(f"{name}:", f"{name}: 1, {name}:", 1)
        return written.encode()

    def at(self, place: Place) -> Any:
        """Returns the value at a place."""
        value = self.value
        for key in place:
            value = value[key]
        return value

    def put(self, place: Place, value: Any, what: str) -> None:
        """Replaces the value at a place."""
        if place:
            self.at(place[:-1])[place[-1]] = value
        else:
            self.value = value
        self.note(place, what)

    def note(self, place: Place, what: str) -> None:
        """Records an edit."""
        self.done.append(f"{spelled(place)} {what}")
        self.touched.append(place)


def edited(original: Any, random: Random, *, within: tuple[str, ...] = (), extra: tuple[Any, ...] = ()) -> Document:
    """Makes one to three edits, most of them `within` these sections. `extra` are more values to insert."""
    document = Document(value=copy.deepcopy(original))
    for _ in range(random.choice((1, 1, 1, 1, 2, 3))):
        present = [name for name in within if isinstance(document.value, dict) and name in document.value]
        start = (random.choice(present),) if present and random.random() < 0.7 else ()
        random.choice(_EDITS)(document, _place(document, random, start), random, extra)
    return document


def nudged(original: Any, random: Random, *, within: tuple[str, ...]) -> Document:
    """Replaces one number of these sections by a plausible one."""
    document = Document(value=copy.deepcopy(original))
    numbers = [place for place in _places(original, ()) if place[:1] and place[0] in within]
    numbers = [place for place in numbers if _is_number(document.at(place))]
    _nudge(document, random.choice(numbers), random, ())
    return document


def spelled(place: Place) -> str:
    """Formats a place for a report."""
    return ".".join(map(str, place)) or "all"


def _places(value: Any, place: Place) -> Iterator[Place]:
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*place, key))


def _place(document: Document, random: Random, start: Place) -> Place:
    """Picks a place some way down from `start`; a long list gets no more attacks than a short one."""
    place = start
    while not place or random.random() > 0.1:
        value = document.at(place)
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if not keys:
            break
        place = (*place, random.choice(keys))
    return place


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _replace(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    likely = _is_number(document.at(place)) and random.random() < 0.7
    value = random.choice(NUMBERS if likely else (*NUMBERS, *VALUES, *extra))
    document.put(place, copy.deepcopy(value), f"= {json.dumps(value)[:60]}")


def _nudge(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    value = document.at(place)
    if not _is_number(value):
        return _replace(document, place, random, extra)
    value = random.choice((value + 1, value - 1, value * 2, value * 3, value // 2, -value, float(value), str(value)))
    return document.put(place, value, f"= {value!r}")


def _remove(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    if not place:
        return _replace(document, place, random, extra)
    del document.at(place[:-1])[place[-1]]
    return document.note(place, "removed")


def _double(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    if not place:
        return _replace(document, place, random, extra)
    if isinstance(place[-1], int):
        document.at(place[:-1]).insert(place[-1], copy.deepcopy(document.at(place)))
    else:
        document.doubled = place[-1]
    return document.note(place, "doubled")


def _rename(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    if not place or isinstance(place[-1], int):
        return _replace(document, place, random, extra)
    name = random.choice((place[-1] + "x", place[-1].upper(), "", "x" * 5000, "../x"))
    section = document.at(place[:-1])
    section[name] = section.pop(place[-1])
    return document.note(place, f"renamed to {name[:40]!r}")


def _swap(document: Document, place: Place, random: Random, extra: tuple[Any, ...]) -> None:
    others = [other for other in _places(document.value, ()) if other[:1] == place[:1] and len(other) == len(place)]
    other = random.choice(others or [place])
    here, there = copy.deepcopy(document.at(place)), copy.deepcopy(document.at(other))
    document.put(place, there, f"swapped with {spelled(other)}")
    document.put(other, here, f"swapped with {spelled(place)}")


_EDITS = (_replace, _replace, _replace, _replace, _nudge, _nudge, _remove, _double, _rename, _swap)
