"""How the objects of the demo's world look: each has a motion that shows when it sounds.

A look is drawn from two clocks of a source: the time since its last event and the time until its next one, both in
seconds per frame. Positions are fractions of the frame. `Place` is the square that an object moves in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from selva_ref.demo.world.canvas import Array, Canvas, Colour


@dataclass(frozen=True, kw_only=True)
class Place:
    """The square in which an object stands and moves."""

    x: float
    """Horizontal centre."""
    y: float
    size: float
    """Side length, as a fraction of the frame."""

    def at(self, right: Array | float, down: Array | float) -> tuple[Array | float, Array | float]:
        """Frame coordinates of a point given from -0.5 to 0.5 within the square."""
        return self.x + right * self.size, self.y + down * self.size


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """Seconds at each frame, (T,) each; large if there is no event."""

    since: Array
    until: Array

    def hit(self, approach_s: float, recover_s: float) -> Array:
        """0 at the event, 1 at rest: falls during `approach_s` before it, recovers during `recover_s` after it."""
        down = np.clip(self.until / approach_s, 0, 1)
        up = np.clip(self.since / recover_s, 0, 1)
        out: Array = np.minimum(down, up)
        return out

    def on(self, seconds: float) -> Array:
        """1 for `seconds` after each event, else 0."""
        return (self.since < seconds).astype(np.float32)


def shade(colour: Colour, factor: float) -> Colour:
    """Makes the colour darker (below 1) or lighter."""
    red, green, blue = (min(1.0, factor * level) for level in colour)
    return red, green, blue


def _ball(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    height = 1 - (1 - clocks.hit(0.3, 0.3)) ** 2
    low = np.exp(-((height / 0.08) ** 2))
    ground_x, ground_y = place.at(0, 0.46)
    canvas.bar(
        ground_x - 0.42 * place.size,
        ground_y,
        ground_x + 0.42 * place.size,
        ground_y,
        0.07 * place.size,
        (0.25, 0.25, 0.25),
    )
    x, y = place.at(0, 0.24 - 0.56 * height + 0.05 * low)
    canvas.disc(x, y, 0.2 * place.size * (1 + 0.2 * low), colour, squash=1 - 0.3 * low)
    canvas.disc(x - 0.06 * place.size, y - 0.07 * place.size, 0.05 * place.size, (1, 1, 1), alpha=0.6)


def _hammer(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    canvas.box(*place.at(-0.42, 0.26), *place.at(0.2, 0.48), (0.2, 0.2, 0.24))
    flash = np.clip(1 - clocks.since / 0.12, 0, 1)
    canvas.disc(*place.at(-0.12, 0.2), 0.16 * place.size, (1.0, 0.9, 0.5), alpha=flash)
    angle = 1.25 * clocks.hit(0.16, 0.35) ** 1.5
    pivot_x, pivot_y = place.at(0.42, 0.14)
    reach = 0.6 * place.size
    head_x, head_y = pivot_x - reach * np.cos(angle), pivot_y - reach * np.sin(angle)
    canvas.bar(pivot_x, pivot_y, head_x, head_y, 0.08 * place.size, (0.55, 0.36, 0.18))
    side_x, side_y = -0.13 * place.size * np.sin(angle), 0.13 * place.size * np.cos(angle)
    canvas.bar(
        head_x - side_x, head_y - side_y, head_x + side_x * 0.5, head_y + side_y * 0.5, 0.17 * place.size, colour
    )


def _dog(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    mouth = np.clip(1 - clocks.since / 0.2, 0, 1) ** 0.5
    lift = 0.1 * mouth
    canvas.disc(*place.at(0.16, 0.26), 0.28 * place.size, shade(colour, 0.85), squash=0.75)
    canvas.disc(*place.at(-0.05, -0.1 - lift), 0.24 * place.size, colour)
    canvas.bar(*place.at(0.1, -0.26 - lift), *place.at(0.2, -0.02 - lift), 0.11 * place.size, shade(colour, 0.5))
    canvas.bar(*place.at(-0.2, -0.1 - lift), *place.at(-0.4, -0.1 - 2.2 * lift), 0.12 * place.size, colour)
    canvas.bar(*place.at(-0.2, 0.02), *place.at(-0.38, 0.02 + 2.2 * lift), 0.1 * place.size, shade(colour, 0.9))
    canvas.disc(*place.at(-0.3, -0.04 - 0.0 * lift), 0.11 * place.size, (0.75, 0.12, 0.12), alpha=mouth, squash=0.8)
    canvas.disc(*place.at(-0.09, -0.18 - lift), 0.045 * place.size, (0.05, 0.05, 0.05))


def _lamp(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    lit = clocks.on(0.2)
    canvas.bar(*place.at(0, -0.1), *place.at(0, 0.46), 0.08 * place.size, (0.15, 0.16, 0.18))
    canvas.bar(*place.at(-0.2, 0.46), *place.at(0.2, 0.46), 0.08 * place.size, (0.15, 0.16, 0.18))
    canvas.disc(*place.at(0, -0.18), 0.36 * place.size, (1.0, 0.85, 0.4), alpha=0.45 * lit)
    canvas.disc(*place.at(0, -0.18), 0.23 * place.size, (0.1, 0.1, 0.12))
    canvas.disc(*place.at(0, -0.18), 0.18 * place.size, shade(colour, 0.4))
    canvas.disc(*place.at(0, -0.18), 0.18 * place.size, (1.0, 0.97, 0.75), alpha=lit)


def _tap(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    metal = shade(colour, 0.8)
    canvas.bar(*place.at(0.4, -0.42), *place.at(0.02, -0.42), 0.12 * place.size, metal)
    canvas.bar(*place.at(0, -0.42), *place.at(0, -0.3), 0.12 * place.size, metal)
    canvas.box(*place.at(-0.36, 0.3), *place.at(0.36, 0.46), (0.2, 0.45, 0.8))
    fall = np.clip(1 - clocks.until / 0.3, 0, 1)
    canvas.disc(
        *place.at(0, -0.24 + 0.52 * fall**2),
        0.085 * place.size,
        (0.35, 0.7, 1.0),
        squash=1.3,
        alpha=(clocks.until < 0.42).astype(np.float32),
    )
    spread = np.clip(clocks.since / 0.25, 0, 1)
    alpha = 0.9 * (1 - spread)
    canvas.disc(*place.at(0, 0.3), (0.1 + 0.3 * spread) * place.size, (0.8, 0.93, 1.0), squash=0.3, alpha=alpha)
    for side in (-1, 1):
        x, y = place.at(side * (0.08 + 0.2 * spread), 0.22 - 0.9 * spread * (1 - spread))
        canvas.disc(x, y, 0.06 * place.size, (0.6, 0.85, 1.0), alpha=alpha)


def _bell(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    swing = np.where(clocks.since < 3, np.exp(-2.5 * clocks.since) * np.cos(2 * np.pi * 2.2 * clocks.since), 0)
    draw = np.clip(1 - clocks.until / 0.16, 0, 1)
    lean = (0.22 * swing * (1 - draw) + 0.22 * draw).astype(np.float32)
    top_x, top_y = place.at(0, -0.44)
    gold = (0.35 + 0.65 * colour[0], 0.3 + 0.5 * colour[1], 0.1)
    canvas.bar(top_x - 0.3 * place.size, top_y, top_x + 0.3 * place.size, top_y, 0.07 * place.size, (0.35, 0.22, 0.12))
    canvas.disc(*place.at(lean * 1.6 + 0.1 * lean, 0.34), 0.08 * place.size, (0.2, 0.15, 0.1))
    canvas.bar(top_x, top_y + 0.1 * place.size, *place.at(lean, 0.08), 0.34 * place.size, gold)
    left, right = place.at(lean - 0.26, 0.22), place.at(lean + 0.26, 0.22)
    canvas.bar(*left, *right, 0.14 * place.size, shade(gold, 0.85))
    struck = np.clip(1 - clocks.since / 0.12, 0, 1)  # only a strike shows it, no swing back
    canvas.disc(*place.at(lean + 0.26, 0.22), 0.13 * place.size, (1.0, 0.97, 0.75), alpha=struck)


def _drum(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    canvas.box(*place.at(-0.4, 0.14), *place.at(0.3, 0.46), colour)
    for y in (0.14, 0.46):
        x0, level = place.at(-0.4, y)
        canvas.bar(x0, level, place.at(0.3, y)[0], level, 0.06 * place.size, (0.85, 0.85, 0.85))
    canvas.disc(*place.at(-0.05, 0.12), 0.35 * place.size, (0.95, 0.93, 0.88), squash=0.25)
    shake = np.clip(1 - clocks.since / 0.1, 0, 1)
    canvas.disc(*place.at(-0.05, 0.12), 0.2 * place.size, (1.0, 0.3, 0.2), squash=0.3, alpha=shake)
    angle = 1.0 * clocks.hit(0.14, 0.28)
    pivot_x, pivot_y = place.at(0.46, -0.14)
    reach = 0.55 * place.size
    tip_x, tip_y = pivot_x - reach * np.cos(angle - 0.42), pivot_y - reach * np.sin(angle - 0.42)
    canvas.bar(pivot_x, pivot_y, tip_x, tip_y, 0.06 * place.size, (0.9, 0.75, 0.5))
    canvas.disc(tip_x, tip_y, 0.08 * place.size, (0.98, 0.9, 0.75))


def _bird(canvas: Canvas, place: Place, clocks: Clocks, colour: Colour) -> None:
    beak = np.clip(1 - clocks.since / 0.18, 0, 1) ** 0.5
    hop = 0.16 * np.sin(np.pi * np.clip(clocks.since / 0.22, 0, 1))
    canvas.bar(*place.at(-0.46, 0.4), *place.at(0.46, 0.4), 0.07 * place.size, (0.4, 0.28, 0.15))
    canvas.bar(*place.at(-0.3, 0.2 - hop), *place.at(-0.46, 0.32 - hop), 0.1 * place.size, shade(colour, 0.6))
    canvas.disc(*place.at(-0.06, 0.14 - hop), 0.25 * place.size, colour, squash=0.8)
    canvas.disc(*place.at(0.14, -0.1 - hop), 0.15 * place.size, shade(colour, 1.15))
    wing = place.at(-0.12, 0.1 - hop - 0.26 * beak)
    canvas.bar(*place.at(-0.02, 0.12 - hop), *wing, 0.12 * place.size, shade(colour, 0.6))
    for side in (-1, 1):
        tip = place.at(0.42, -0.1 - hop + side * 0.13 * beak)
        canvas.bar(*place.at(0.27, -0.1 - hop), *tip, 0.07 * place.size, (1.0, 0.7, 0.1))
    canvas.disc(*place.at(0.17, -0.14 - hop), 0.035 * place.size, (0.05, 0.05, 0.05))


LOOKS: dict[str, Callable[[Canvas, Place, Clocks, Colour], None]] = {
    "ball": _ball,
    "hammer": _hammer,
    "dog": _dog,
    "lamp": _lamp,
    "tap": _tap,
    "bell": _bell,
    "drum": _drum,
    "bird": _bird,
}
