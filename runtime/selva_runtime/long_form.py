"""Generate the windows of a clip, one after the other, and give the sound as soon as it is final.

The arithmetic of a window is `Generation`'s. Here its noise is cut out by place, the latents that are known from
earlier windows are held (`flow.Held`), and the new ones are merged into those of the clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from selva_bundle.lengths import LongForm, SequenceRules
from selva_runtime.flow import Held
from selva_runtime.generation import Features, Generation
from selva_runtime.results import StemPart
from selva_runtime.windows import Window, unit_length

Float32 = npt.NDArray[np.float32]

CONTEXT = 10
"""Latent vectors before and after a part of the sound that the decoder sees too."""
SPLICE_SAMPLES = 320
FREE = np.zeros(1, np.float32)


def parts(
    generation: Generation, windows: Sequence[Window], form: LongForm, noise: Float32, *, loop: bool
) -> Iterator[StemPart]:
    """Generate window after window, and yield the next part of every stem whenever it is final.

    `noise` is (stems, latent, width), by place in the clip. The end of a `loop` leads back to its begin.

    Raises:
        BackendError: the backend failed.
        Cancelled: the caller's event was set.
    """
    features = generation.features()
    if len(windows) == 1:
        latents, _ = generation.flow(windows[0], features, noise)
        yield from generation.decode(latents, 0, 0, generation.latent)
        return
    grown = _grow(generation, windows, features, form, noise)
    if loop:
        yield from _decode_loop(generation, grown, decoded_at_once(generation.rules, form))
        return
    done, most = 0, decoded_at_once(generation.rules, form)
    for latents, final in grown:
        stop = final if final == generation.latent else final - CONTEXT
        if stop > done and final >= most:
            yield from decode_part(generation, latents[:, :final], done, stop, most)
            done = stop


def replaced(
    generation: Generation, windows: Sequence[Window], form: LongForm, noise: Float32, latents: Float32
) -> Float32:
    """Generate those of the latents (1, latent, width) again that the windows leave free, and return them all.

    The latents around are held on the straight path from the noise.

    Raises:
        BackendError: the backend failed.
        Cancelled: the caller's event was set.
    """
    features, latents = generation.features(), latents.copy()
    opening = latents[:, : windows[0].lengths.latent]
    for window in windows:
        anchors = _anchors(generation, opening, window)
        start, known = _cut(noise, window), _cut(latents, window)
        known[:, : window.anchor] = _from(anchors, opening, window.anchor)
        times = (np.arange(generation.request.steps, dtype=np.float32) / generation.request.steps)[:, None, None, None]
        path = ((1 - times) * start + times * known).astype(np.float32)
        held = Held(values=path, weights=window.weights(form.guard))
        ended, _ = generation.flow(window, features, start, held, anchors=[anchor.segment for anchor in anchors])
        _merge(latents, window, generation.executor.read(ended)[0], held.weights)
    return latents


def decode_part(generation: Generation, latents: Float32, first: int, stop: int, most: int) -> Iterator[StemPart]:
    """Yield the sound of the latents (stems, latent, width) from the place `first` to `stop`.

    The decoder sees `most` latents at a time, always as many: some backends set themselves up for each length.
    """
    known = latents.shape[1]
    while first < stop:
        reach = max(0, first - CONTEXT) + most
        end = min(stop, reach if reach >= known else reach - CONTEXT)
        begin = max(0, min(end + CONTEXT, known) - most)
        yield from generation.decode(latents[:, begin : begin + most], first - begin, first, end)
        first = end


def decoded_at_once(rules: SequenceRules, form: LongForm) -> int:
    """Latent vectors that the decoder sees at a time: what a window adds, with context."""
    added = form.window_segments - form.anchor_segments + 1 - form.overlap_segments
    return math.ceil(added * unit_length(rules)) + 2 * CONTEXT


def splice(audio: Float32, new: Float32, first_sample: int) -> None:
    """Replace the samples from `first_sample` on by `new` (n,), with a short cross-fade at both ends of `new`."""
    place = slice(first_sample, first_sample + len(new))
    ramp = np.ones(len(new), np.float32)
    length = min(SPLICE_SAMPLES, len(new) // 4)
    rise = (np.arange(length, dtype=np.float32) + 1) / (length + 1)
    if first_sample:
        ramp[:length] = rise
    if place.stop < len(audio):
        ramp[len(new) - length :] = rise[::-1]
    audio[place] = audio[place] + ramp * (new - audio[place])


def _grow(
    generation: Generation, windows: Sequence[Window], features: Features, form: LongForm, noise: Float32
) -> Iterator[tuple[Float32, int]]:
    """Yield the latents of the clip after each window, and the place before which they are final."""
    latents = np.zeros_like(noise)
    first, *others = windows
    ended, opening = _run(generation, first, features, _cut(noise, first))
    _merge(latents, first, ended, FREE)
    yield latents, first.final
    voice, before, states = ended, first, opening
    for window in others:
        anchors = _anchors(generation, voice, window)
        values = _known(window, opening, anchors, before, states)
        held = Held(values=values, weights=window.weights(form.guard))
        ended, states = _run(generation, window, features, _cut(noise, window), held, anchors)
        _merge(latents, window, ended, held.weights)
        before = window
        yield latents, window.final


def _run(
    generation: Generation,
    window: Window,
    features: Features,
    noise: Float32,
    held: Held | None = None,
    anchors: Sequence[Anchor] = (),
) -> tuple[Float32, Float32]:
    """Generate a window. Return its latents (stems, T, Z) and the states before each step (steps, stems, T, Z)."""
    segments = [anchor.segment for anchor in anchors]
    ended, kept = generation.flow(window, features, noise, held, anchors=segments, keep_states=True)
    states = np.concatenate([batch for batch in kept if batch is not None], axis=1)
    return generation.executor.read(ended)[0], states


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Where a stem's anchor begins in the first window."""

    segment: int
    latent: int


def _anchors(generation: Generation, opening: Float32, window: Window) -> list[Anchor]:
    """Choose the anchor of each stem from the latents (stems, T, Z) of the first window: where most happens.

    An anchor in which nothing sounds could not keep a voice.
    """
    unit = unit_length(generation.rules)
    changes = np.linalg.norm(np.diff(opening, axis=1), axis=2)
    shown = max(int(opening.shape[1] / unit) - 1, generation.clip.shots[0].segments)  # n segments show n + 1 units
    last = min(int((opening.shape[1] - window.anchor) / unit), shown - window.anchor_segments)
    places = [Anchor(segment=segment, latent=round(segment * unit)) for segment in range(last + 1)]

    def happens(stem: Float32) -> Anchor:
        return max(places, key=lambda place: float(stem[place.latent : place.latent + window.anchor].sum()))

    return [happens(stem) for stem in changes]


def _from(anchors: Sequence[Anchor], opening: Float32, length: int) -> Float32:
    """(…, stems, length, Z): each stem's anchor in (…, stems, T, Z) of the first window."""
    parts = [opening[..., i, anchor.latent : anchor.latent + length, :] for i, anchor in enumerate(anchors)]
    return np.stack(parts, axis=-3)


def _cut(clip: Float32, window: Window) -> Float32:
    """The rows (stems, T, Z) of the clip at the window's places. After the end of the clip its last row is repeated."""
    places = np.minimum(np.arange(window.start, window.stop), clip.shape[1] - 1)
    return clip[:, np.concatenate([np.arange(window.anchor), places])]


def _known(window: Window, opening: Float32, anchors: Sequence[Anchor], before: Window, states: Float32) -> Float32:
    """(steps, stems, T, Z) states that are known: of the anchor, of the window before, and of the loop's begin."""
    values = np.zeros((*states.shape[:2], window.lengths.latent, states.shape[3]), np.float32)
    values[:, :, : window.anchor] = _from(anchors, opening, window.anchor)
    place = before.anchor + window.start - before.start
    values[:, :, window.anchor : window.anchor + window.known] = states[:, :, place : place + window.known]
    if window.known_after:
        values[:, :, -window.known_after :] = opening[:, :, : window.known_after]
    return values


def _merge(latents: Float32, window: Window, ended: Float32, weights: Float32) -> None:
    """Write the window's own latents into those of the clip, except where they are held."""
    own = min(window.stop, latents.shape[1]) - window.start
    weight = np.broadcast_to(weights, (window.lengths.latent,))[window.anchor :][:own, None]
    place = slice(window.start, window.start + own)
    latents[:, place] = weight * latents[:, place] + (1 - weight) * ended[:, window.anchor :][:, :own]


def _decode_loop(generation: Generation, grown: Iterator[tuple[Float32, int]], most: int) -> Iterator[StemPart]:
    """Yield the parts of a loop once all is there, because the sound of its begin depends on its end."""
    *_, (latents, length) = grown
    for first in range(0, length, most - 2 * CONTEXT):
        stop = min(first + most - 2 * CONTEXT, length)
        places = np.arange(first - CONTEXT, first - CONTEXT + most) % length
        yield from generation.decode(latents[:, places], CONTEXT, first, stop)
